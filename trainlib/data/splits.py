"""Splits of a data set's training samples, by index: validation, and the limited training set."""

from __future__ import annotations

from torch import Tensor

from trainlib.randomness import key, permutation


def split_validation(num_samples: int, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the samples to train on and of those held out for validation: int64, ascending.

    A function of the arguments alone. With val_fraction > 0 each side has at least one sample.
    """
    num_val = round(num_samples * val_fraction)
    if val_fraction > 0:
        num_val = min(max(num_val, 1), num_samples - 1)
    order = permutation(key("validation", seed), num_samples)
    return order[num_val:].sort().values, order[:num_val].sort().values


def limit_samples(ids_N: Tensor, limit: int | None, seed: int) -> Tensor:
    """Return a random subset of `limit` of these sample indices in their own order; all of them if limit is None."""
    if limit is None:
        return ids_N
    chosen = permutation(key("limit", seed), len(ids_N))[:limit].sort().values
    return ids_N[chosen]
