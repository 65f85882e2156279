"""Network architectures: our own, and torchvision's by name."""
