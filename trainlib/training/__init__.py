"""Training: session, loop, hooks, the step and what builds it, checkpoints, metrics, tuning, programs."""
