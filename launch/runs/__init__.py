"""What the commands for runs do: list, status, logs, stop, cancel, remove, verify."""
