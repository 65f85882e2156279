"""What goes to SLURM when a run is submitted: options, the site's defaults, the batch script, a copy of the code."""
