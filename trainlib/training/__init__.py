"""Training: the session, the loop, the step, checkpoints, metrics, tracking and tuning."""
