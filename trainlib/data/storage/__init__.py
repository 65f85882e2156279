"""Where decoded images are kept: the cache on disk."""
