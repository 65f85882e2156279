"""What torch's and torchvision's classes take, read from their source without importing them."""
