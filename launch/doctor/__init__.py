"""Checks of this machine for training: each gives the facts, a verdict, and advice."""
