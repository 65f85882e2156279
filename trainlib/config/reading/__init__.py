"""Configuration files and command-line overrides: reading and merging."""
