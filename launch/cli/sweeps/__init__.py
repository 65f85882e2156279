"""The command for sweeps, and what several commands do with repeated runs."""
