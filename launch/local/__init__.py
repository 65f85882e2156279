"""Start and supervise the ranks of this machine."""
