"""The decoding of image files, in worker processes."""
