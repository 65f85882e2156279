"""Splits of a data set's samples, by index: validation, test, and the limited training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainlib.data.targets import strata
from trainlib.randomness import draw, key, permutation


def split_validation(
    labels_N: Tensor,
    val_fraction: float,
    seed: int,
    split: str = "stratified",
    identities_N: Tensor | None = None,
    groups_N: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the indices of the samples to train on and of those held out for validation: int64, ascending.

    labels_N       of sets of classes, each sample counts as one of its rarest class (see `targets.strata`)
    split          "stratified": of each class, the first round(val_fraction x n), at least one, in the order of a hash
                   of (seed, identity); "random": the same over all samples at once; "index": as "random", with the
                   sample's index for its identity
    identities_N   int64 [N], one for each sample; None for the index
    groups_N       int64 [N]: samples with one number stay on one side; None where they stand alone

    A function of the arguments alone. A sample that is added moves at most one other, of its class. With
    val_fraction > 0, each class of two or more samples (or groups) has at least one on each side.
    """
    if split == "index":
        identities_N = None
    is_stratified = split == "stratified"
    return _hold_out(key("validation", seed), strata(labels_N), val_fraction, is_stratified, identities_N, groups_N)


def split_test(
    labels_N: Tensor,
    test_fraction: float,
    seed: int,
    split: str = "stratified",
    identities_N: Tensor | None = None,
    groups_N: Tensor | None = None,
) -> Tensor:
    """Return the indices of the samples held out for the test, int64, ascending: as validation is, by another hash."""
    is_stratified = split == "stratified"
    return _hold_out(key("test", seed), strata(labels_N), test_fraction, is_stratified, identities_N, groups_N)[1]


def split_fold(
    labels_N: Tensor,
    fold: int,
    num_folds: int,
    seed: int,
    split: str = "stratified",
    identities_N: Tensor | None = None,
    groups_N: Tensor | None = None,
) -> Tensor:
    """Return the indices of the samples of one fold, int64, ascending; every sample is in exactly one fold.

    fold   from 0 on

    Each class is dealt out to the folds in the order of a hash of (seed, identity), so that folds differ by at most one
    sample of a class; with groups the largest go first, each to the fold that has the fewest of its class. A function
    of the arguments alone. The others are as of `split_validation`.
    """
    units = _units(strata(labels_N), None if split == "index" else identities_N, groups_N)
    classes_U = units.labels_U if split == "stratified" else torch.zeros_like(units.labels_U)
    order = torch.argsort(draw(key("fold", seed), units.identities_U), stable=True)
    if groups_N is not None:
        order = order[torch.argsort(units.sizes_U[order], stable=True, descending=True)]
    order = order[torch.argsort(classes_U[order], stable=True)]
    folds_U = torch.empty_like(order)
    if groups_N is None:
        folds_U[order] = torch.arange(len(order)) % num_folds
    else:
        folds_U[order] = _dealt(classes_U[order].tolist(), units.sizes_U[order].tolist(), num_folds)
    return torch.nonzero(folds_U[units.of_N] == fold)[:, 0]


def _dealt(classes: Sequence[int], sizes: Sequence[int], num_folds: int) -> Tensor:
    """Return the fold of each group: the one with the fewest samples of its class so far, then with the fewest."""
    of_class: dict[int, list[int]] = {}
    total = [0] * num_folds
    folds = []
    for label, size in zip(classes, sizes, strict=True):
        counts = of_class.setdefault(label, [0] * num_folds)
        fold = min(range(num_folds), key=lambda number: (counts[number], total[number], number))
        counts[fold] += size
        total[fold] += size
        folds.append(fold)
    return torch.tensor(folds, dtype=torch.int64)


def limit_samples(ids_N: Tensor, limit: int | None, seed: int) -> Tensor:
    """Return a random subset of `limit` of these sample indices in their own order; all of them if limit is None."""
    if limit is None:
        return ids_N
    chosen = permutation(key("limit", seed), len(ids_N))[:limit].sort().values
    return ids_N[chosen]


@dataclass(frozen=True)
class _Units:
    """What goes to one side as a whole, [U] each: samples, or groups of them with the class that most of them have."""

    of_N: Tensor  # the unit of each sample
    labels_U: Tensor
    identities_U: Tensor
    sizes_U: Tensor


def _hold_out(
    stream: int,
    labels_N: Tensor,
    fraction: float,
    by_class: bool,
    identities_N: Tensor | None,
    groups_N: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return the indices that are kept and those that are held out, int64, ascending."""
    units = _units(labels_N, identities_N, groups_N)
    classes_U = units.labels_U if by_class else torch.zeros_like(units.labels_U)
    if by_class and int(torch.bincount(classes_U).max()) == 1:  # no class can spare a sample: take of all at once
        return _hold_out(stream, labels_N, fraction, False, identities_N, groups_N)
    order = torch.argsort(draw(stream, units.identities_U), stable=True)
    order = order[torch.argsort(classes_U[order], stable=True)]
    is_held_U = torch.zeros(len(order), dtype=torch.bool)
    for of_class in torch.split(order, torch.bincount(classes_U).tolist()):
        is_held_U[of_class[: _how_many(units.sizes_U[of_class], fraction)]] = True
    is_held_N = is_held_U[units.of_N]
    ids_N = torch.arange(len(labels_N))
    return ids_N[~is_held_N], ids_N[is_held_N]


def _units(labels_N: Tensor, identities_N: Tensor | None, groups_N: Tensor | None) -> _Units:
    ids_N = torch.arange(len(labels_N))
    if groups_N is None:
        return _Units(ids_N, labels_N, ids_N if identities_N is None else identities_N, torch.ones_like(labels_N))
    groups_U, of_N, sizes_U = torch.unique(groups_N, return_inverse=True, return_counts=True)
    num_classes = int(labels_N.max()) + 1
    pairs, counts = torch.unique(of_N * num_classes + labels_N, return_counts=True)  # of a group and a class
    order = torch.argsort(counts, stable=True, descending=True)  # the first of a group is its commonest class
    order = order[torch.argsort(pairs[order] // num_classes, stable=True)]
    first = torch.cumsum(torch.bincount(pairs // num_classes), 0) - torch.bincount(pairs // num_classes)
    return _Units(of_N, pairs[order][first] % num_classes, groups_U, sizes_U)


def _how_many(sizes: Tensor, fraction: float) -> int:
    """Return how many units of a class, whose sizes these are in order, to hold out: about that share of its samples.

    At least one, and never all; none for fraction 0, or where there is one unit only.
    """
    if fraction <= 0 or len(sizes) < 2:
        return 0
    share = max(round(int(sizes.sum()) * fraction), 1)
    middles = 2 * torch.cumsum(sizes, 0) - sizes  # doubled; a unit is in the share if more of it is inside than outside
    return min(max(int((middles <= 2 * share).sum()), 1), len(sizes) - 1)
