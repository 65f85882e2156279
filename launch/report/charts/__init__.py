"""Curves of runs: which there are, and their geometry."""
