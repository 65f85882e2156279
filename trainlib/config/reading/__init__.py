"""Reading configuration files and overrides, and merging them."""
