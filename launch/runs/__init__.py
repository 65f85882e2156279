"""Looking at runs and steering them: list, status, logs, stop, cancel, verify."""
