"""Sweeps, many runs from one file: reading the file (grid), training here (local), comparing results (results)."""
