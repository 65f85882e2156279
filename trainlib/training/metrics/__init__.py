"""Loss, accuracy and timing: exact sums over ranks, and evaluation."""
