"""Training on a SLURM cluster: what is submitted, what happens inside a job, and the record of a run's jobs."""
