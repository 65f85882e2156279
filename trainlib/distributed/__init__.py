"""The ranks of a run: process group, stop consensus, gradient reduction, watchdog."""
