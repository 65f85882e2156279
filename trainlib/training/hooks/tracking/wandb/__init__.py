"""Weights & Biases: a process of its own that follows the rows of a run."""
