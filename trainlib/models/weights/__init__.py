"""Weights in files: their tensors are read safely and find their places in a model."""
