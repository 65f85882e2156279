"""Policies of augmentation, and the operations on whole batches that they are made of."""
