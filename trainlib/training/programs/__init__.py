"""Programs that the launcher starts beside training: check, prepare, verify."""
