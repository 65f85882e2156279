"""What the files of a run directory say: rows, checkpoints, SLURM jobs, failures, and why an attempt ended."""
