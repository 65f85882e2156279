"""Programs that try a setting out, without a run: the learning rate and the size of micro-batches."""
