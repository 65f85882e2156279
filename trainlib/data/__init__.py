"""Data sets of uint8 images, fetched by index, and the augmentation and batching of them on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trainlib.config import DataConfig, is_custom
from trainlib.data.augment.augmentation import Augmentation
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.data.datasets.folds import fold_rows, in_fold
from trainlib.data.datasets.framed import frame_dataset
from trainlib.data.datasets.images import Images
from trainlib.data.sources.arrays.cifar10 import load_cifar10
from trainlib.data.sources.arrays.in_memory import fingerprint, image_dataset
from trainlib.data.sources.arrays.synthetic import NUM_TRAIN, SHAPES, make_synthetic
from trainlib.data.sources.folders.image_folder import find_images, load_class_folder
from trainlib.data.sources.handover import made_once
from trainlib.data.sources.listed import listed_files, load_files, tell
from trainlib.data.sources.samples import Samples

__all__ = [
    "Augmentation",
    "Dataset",
    "DatasetInfo",
    "ImageSet",
    "Images",
    "Preprocess",
    "dataset_info",
    "find_images",
    "fingerprint",
    "image_dataset",
    "list_files",
    "load_class_folder",
    "load_data",
]


def load_data(
    config: DataConfig,
    seed: int = 0,
    *,
    stop_requested: Callable[[], bool] = lambda: False,
    is_main: bool = True,
    start_folder: Path | None = None,
    own: Dataset | None = None,
    tell_decoded: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Load the whole data set that the configuration names, in its own order.

    seed            of the run: random cuts, and a test split that the data do not bring, are drawn from it
    stop_requested  called again and again while images are decoded or another process decodes them; True ends that
    is_main         True on the one rank that shows progress and warnings
    start_folder    a folder that the ranks of this start on this machine share: one of them lists the files for all
    own             a data set of the user's own, which takes the place of the configured one
    tell_decoded    called with how many pictures are decoded, and of how many, while the cache is filled
    Images have the configured size, whatever the size of their pictures.

    Raises DataError for data that is missing, damaged or of the wrong form, StoppedError when asked to stop.
    """
    if own is not None:
        return frame_dataset(in_fold(own, config, seed), config, seed)
    match config.name:
        case "cifar10":
            whole = load_cifar10(Path(config.root), stop_requested=stop_requested)
            return frame_dataset(in_fold(whole, config, seed), config, seed)
        case "synthetic":
            return frame_dataset(in_fold(make_synthetic(), config, seed), config, seed)
    what = f"{seed} {config.model_dump_json()} {Path.cwd()}"
    found = made_once(
        start_folder, what, lambda: listed_files(config, seed), stop_requested=stop_requested, is_main=is_main
    )
    if is_main:
        tell(found.samples)
    return load_files(found, config, seed, stop_requested=stop_requested, is_main=is_main, tell_decoded=tell_decoded)


def list_files(config: DataConfig, seed: int = 0, *, warn: bool = True) -> Samples | None:
    """Return the samples of a data set of files, with its test split; None for data that are no files.

    warn   tell of files that are left out

    Raises DataError for files that are missing or of the wrong form.
    """
    if config.name in ("cifar10", "synthetic") or is_custom(config.name):
        return None
    samples = listed_files(config, seed).samples
    if warn:
        tell(samples)
    return samples


class DatasetInfo(NamedTuple):
    """What a data set holds, as far as it is known without a look at a picture.

    num_classes   of the whole data set; the rest is of the training images, as in `ImageSet` and `Dataset`
    """

    labels_N: Tensor
    num_classes: int
    identities_N: Tensor | None = None
    groups_N: Tensor | None = None
    val_ids: Tensor | None = None


def dataset_info(config: DataConfig, seed: int = 0, own: Dataset | None = None) -> DatasetInfo:
    """Return what the configured data set holds; nothing is decoded or downloaded.

    own   a data set of the user's own, which takes the place of the configured one

    Raises DataError for files that are missing or of the wrong form.
    """
    if own is not None:
        own = in_fold(own, config, seed)
        train = own.train
        return DatasetInfo(train.labels_N, len(own.class_names), train.identities_N, train.groups_N, own.val_ids)
    match config.name:
        case "cifar10":
            return _without_fold(torch.arange(50_000) % 10, 10, config, seed)  # as many of each class, in another order
        case "synthetic":
            return _without_fold(torch.arange(NUM_TRAIN) % len(SHAPES), len(SHAPES), config, seed)
    found = listed_files(config, seed)
    tell(found.samples)
    facts, num_classes = found.training, len(found.samples.classes)
    return DatasetInfo(facts.labels_N, num_classes, facts.identities_N, facts.groups_N, facts.val_ids)


def _without_fold(labels_N: Tensor, num_classes: int, config: DataConfig, seed: int) -> DatasetInfo:
    """Return what is left of training samples that are no files without the configured fold."""
    if config.fold is None:
        return DatasetInfo(labels_N, num_classes)
    is_left_N = torch.ones(len(labels_N), dtype=torch.bool)
    is_left_N[fold_rows(config, seed, labels_N, None, None)] = False
    return DatasetInfo(labels_N[is_left_N], num_classes, torch.nonzero(is_left_N)[:, 0])
