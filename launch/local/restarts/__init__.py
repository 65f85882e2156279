"""Starts after a fault of the machine: whether there is another one, and the loop that makes it."""
