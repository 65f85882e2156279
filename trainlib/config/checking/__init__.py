"""Checks of a configuration's values, and the messages about mistakes in them."""
