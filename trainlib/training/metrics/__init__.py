"""Metrics and timing: exact sums over ranks, predictions, thresholds of label sets, progress."""
