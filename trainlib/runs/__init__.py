"""Run directories: their files, locks, logs, attempts and stop requests. Never imports torch."""
