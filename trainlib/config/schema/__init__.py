"""The schema of the configuration: its sections, the types of their values, defaults, and look-ups by key."""
