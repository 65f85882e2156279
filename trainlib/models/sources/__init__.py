"""Where models come from: what builds an architecture by name, and which weights of it are published."""
