"""Augmentation: random changes of whole batches of training images, drawn from (seed, epoch, sample index)."""
