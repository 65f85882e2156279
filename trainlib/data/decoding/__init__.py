"""Decoding image files in worker processes, and the cache of decoded images."""
