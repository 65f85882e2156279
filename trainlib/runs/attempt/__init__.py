"""One attempt at a run while it goes on: its record, its logs, who owns the directory, and requests to stop."""
