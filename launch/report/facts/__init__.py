"""What the files of a run say: figures, history, evaluations."""
