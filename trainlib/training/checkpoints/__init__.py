"""Writing, verifying, loading and pruning checkpoints."""
