"""Network architectures of our own, and parts of them; those of torchvision and timm are in `models/sources`."""
