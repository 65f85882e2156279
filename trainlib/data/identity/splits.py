"""Splits of a data set's training samples, by index: validation, and the limited training set."""

from __future__ import annotations

import torch
from torch import Tensor

from trainlib.randomness import draw, key, permutation


def split_validation(
    labels_N: Tensor, val_fraction: float, seed: int, split: str = "stratified", identities_N: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the indices of the samples to train on and of those held out for validation: int64, ascending.

    split          "stratified": of each class, the first round(val_fraction x n), at least one, in the order of a hash
                   of (seed, identity); "random": the same over all samples at once; "index": as "random", with the
                   sample's index for its identity
    identities_N   int64 [N], one for each sample; None for the index

    A function of the arguments alone. A sample that is added moves at most one other, of its class. With
    val_fraction > 0, each class of two or more samples has at least one on each side.
    """
    num_samples = len(labels_N)
    ids_N = torch.arange(num_samples)
    if split == "index" or identities_N is None:
        identities_N = ids_N
    order = torch.argsort(draw(key("validation", seed), identities_N), stable=True)
    classes_N = labels_N if split == "stratified" else torch.zeros_like(labels_N)
    order = order[torch.argsort(classes_N[order], stable=True)]
    counts = torch.bincount(classes_N).tolist()
    if split == "stratified" and max(counts) == 1:  # no class can spare a sample: take of all at once
        return split_validation(labels_N, val_fraction, seed, "random", identities_N)
    held_out = [min(max(round(n * val_fraction), 1), n - 1) if val_fraction > 0 and n else 0 for n in counts]
    val_ids = torch.cat([of_class[:k] for of_class, k in zip(torch.split(order, counts), held_out, strict=True)])
    is_val_N = torch.zeros(num_samples, dtype=torch.bool)
    is_val_N[val_ids] = True
    return ids_N[~is_val_N], ids_N[is_val_N]


def limit_samples(ids_N: Tensor, limit: int | None, seed: int) -> Tensor:
    """Return a random subset of `limit` of these sample indices in their own order; all of them if limit is None."""
    if limit is None:
        return ids_N
    chosen = permutation(key("limit", seed), len(ids_N))[:limit].sort().values
    return ids_N[chosen]
