"""Weights: read safely from files and put into a model, averaged (EMA), and kept aside to be put back."""
