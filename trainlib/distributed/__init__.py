"""The ranks of a run: process group, devices, gradient reduction, agreements, checks, slow ranks, watchdog."""
