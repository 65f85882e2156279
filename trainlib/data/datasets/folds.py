"""One fold of a data set in the place of its test split: `data.fold`, for cross-validation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainlib.config import DataConfig, fold_of
from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.data.datasets.images import InMemoryImages, Pictures, as_images
from trainlib.data.identity.splits import split_fold
from trainlib.errors import DataError


def fold_rows(
    config: DataConfig,
    seed: int,
    labels_N: Tensor,
    identities_N: Tensor | None,
    groups_N: Tensor | None,
    val_ids: Tensor | None = None,
) -> Tensor:
    """Return the indices of the training samples that the configured fold holds out for the test, int64, ascending.

    val_ids   samples that the data bring for validation, which are in no fold

    Raises DataError for more folds than there are samples, or groups of them, to share out.
    """
    fold, num_folds = fold_of(str(config.fold))
    is_free_N = torch.ones(len(labels_N), dtype=torch.bool)
    if val_ids is not None:
        is_free_N[val_ids] = False
    free = torch.nonzero(is_free_N)[:, 0]
    identities_F = free if identities_N is None else identities_N[free]
    groups_F = None if groups_N is None else groups_N[free]
    num_units = len(free) if groups_F is None else len(torch.unique(groups_F))
    if num_units < num_folds:
        what = f"{num_units} {'training samples' if groups_F is None else 'groups'}"
        raise DataError(f"data.fold: got {config.fold}, and {what} are too few for {num_folds} folds: take fewer folds")
    return free[split_fold(labels_N[free], fold, num_folds, seed, config.split, identities_F, groups_F)]


def in_fold(dataset: Dataset, config: DataConfig, seed: int) -> Dataset:
    """Return a data set that is no files with the configured fold for its test split; as it is, without one.

    Its own test split is left out. The samples keep their identities, by which validation is drawn.
    """
    if config.fold is None:
        return dataset
    train = dataset.train
    test_rows = fold_rows(config, seed, train.labels_N, train.identities_N, train.groups_N, dataset.val_ids)
    is_left_N = torch.ones(len(train.labels_N), dtype=torch.bool).index_fill(0, test_rows, False)
    rows = torch.nonzero(is_left_N)[:, 0]
    val_ids = dataset.val_ids
    if val_ids is not None:
        val_ids = torch.searchsorted(rows, val_ids)
    counts = dict(dataset.listing.counts) | {"train": len(rows), "test": len(test_rows)}
    return replace(
        dataset,
        train=_some(train, rows),
        test=_some(train, test_rows),
        val_ids=val_ids,
        listing=replace(dataset.listing, counts=counts),
    )


def _some(images: ImageSet, rows: Tensor) -> ImageSet:
    """Return these rows of an image set; a sample without an identity has its row for one."""
    return ImageSet(
        some_pictures(images.images, rows),
        images.labels_N[rows],
        rows if images.identities_N is None else images.identities_N[rows],
        None if images.groups_N is None else images.groups_N[rows],
    )


def some_pictures(pictures: Pictures, rows: Tensor) -> Pictures:
    """Return these rows of pictures, in their order."""
    if isinstance(pictures, InMemoryImages):
        return InMemoryImages(pictures.images_NCHW[rows], pictures.device)
    return _SomePictures(pictures, rows)


class _SomePictures:
    """Some rows of pictures of another class."""

    def __init__(self, pictures: Pictures, rows: Tensor):
        self._pictures, self._rows = pictures, rows

    def __len__(self) -> int:
        return len(self._rows)

    def to(self, device: torch.device) -> _SomePictures:
        """Return the same pictures with their batches on `device`."""
        return _SomePictures(self._pictures.to(device), self._rows)

    def batches(
        self, ids: Sequence[Tensor], epoch: int | None = None, draws: Sequence[Tensor] | None = None
    ) -> Iterator[Tensor]:
        """Yield the images uint8 [B, C, H, W] for each tensor of indices, int64 [B]; see `Images`."""
        return as_images(self._pictures).batches([self._rows[ids_B.cpu()] for ids_B in ids], epoch, draws or ids)
