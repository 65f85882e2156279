"""Programs that the launcher starts beside training: check, prepare, prune, verify, find settings, look at data."""
