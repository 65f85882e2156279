"""The devices of this machine: which one a rank gets, its name, its memory, and torch's settings for it."""
