"""Data that are held as arrays: CIFAR-10, the drawings of `synthetic`, and what Python hands over."""
