"""What happens when the ranks of a job have ended: evidence, the decision, the requeue."""
