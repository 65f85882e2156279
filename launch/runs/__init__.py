"""The commands that look at runs and control them: list, status, logs, stop, cancel, verify."""
