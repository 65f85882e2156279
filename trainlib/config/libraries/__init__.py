"""The arguments of torch's and torchvision's classes, read from their source without importing them."""
