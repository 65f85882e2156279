"""Trackers that Accelerate knows by name (MLflow, Trackio, Aim ...), each followed in a process of its own."""
