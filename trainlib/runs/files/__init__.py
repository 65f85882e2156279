"""Files of any run directory: written whole, read with suspicion, locked; and temporary folders."""
