"""What differs between machines: devices of torch, Python's module path, kinds of files."""
