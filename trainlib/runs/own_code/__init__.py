"""Code of the user's own: read where `--code` names it, copied into the run directory, trusted, and imported."""
