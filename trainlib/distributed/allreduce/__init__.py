"""Summing gradients over ranks: in elastic mode, and through shared memory."""
