"""Parts of the user's own, given in Python or by `--code`: models, losses, metrics and others."""
