"""Gradients added up over ranks: by DistributedDataParallel, in elastic mode's order, through shared memory."""
