"""Runs that repeat a configuration with each fold held out, or with other seeds, and what they say together."""
