"""Checks of a configuration's values, and the messages that mistakes get."""
