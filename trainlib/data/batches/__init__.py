"""Batches: their plan over the run, the slice that each rank computes, and the loader that makes their tensors."""
