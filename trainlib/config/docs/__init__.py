"""The description of every configuration key, and the generator of docs/config.md."""
