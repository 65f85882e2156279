"""Data sets of uint8 images, fetched by index, and the augmentation and batching of them on the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trainlib.config import DataConfig, custom_part_missing
from trainlib.data.augment.augmentation import Augmentation
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.dataset import Dataset, ImageSet
from trainlib.data.images import Images
from trainlib.data.sources.cifar10 import load_cifar10
from trainlib.data.sources.image_folder import find_images, list_image_folder, load_class_folder
from trainlib.data.sources.in_memory import fingerprint, image_dataset
from trainlib.data.sources.listed import complete_splits, load_samples, training_facts
from trainlib.data.sources.samples import Samples
from trainlib.data.sources.synthetic import NUM_TRAIN, SHAPES, make_synthetic
from trainlib.data.sources.table import list_table
from trainlib.errors import UserError

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
    config: DataConfig, seed: int = 0, *, stop_requested: Callable[[], bool] = lambda: False, is_main: bool = True
) -> Dataset:
    """Load the whole data set that the configuration names, in its own order.

    seed            of the run: a test split that the data do not bring is drawn from it
    stop_requested  called again and again while images are decoded or another process decodes them; True ends that
    is_main         True on the one rank that shows progress and warnings
    Images of files have the configured `image_size`, those of cifar10 and synthetic their own 32 x 32 pixels.

    Raises DataError for data that is missing, damaged or of the wrong form, StoppedError when asked to stop.
    """
    match config.name:
        case "cifar10":
            return load_cifar10(Path(config.root), stop_requested=stop_requested)
        case "synthetic":
            return make_synthetic()
    samples = complete_splits(_list_samples(config, warn=is_main), config, seed)
    return load_samples(samples, config, stop_requested=stop_requested, is_main=is_main)


def list_files(config: DataConfig, seed: int = 0, *, warn: bool = True) -> Samples | None:
    """Return the samples of a data set of files, with its test split; None for data that are no files.

    warn   tell of files that are left out

    Raises DataError for files that are missing or of the wrong form.
    """
    if config.name in ("cifar10", "synthetic"):
        return None
    return complete_splits(_list_samples(config, warn=warn), config, seed)


def _list_samples(config: DataConfig, *, warn: bool) -> Samples:
    """List the samples of a data set of files; nothing is decoded."""
    match config.name:
        case "image_folder":
            return list_image_folder(Path(config.root), group=config.group, warn=warn)
        case "table":
            return list_table(Path(config.root), config.table or "", group=config.group)
    raise UserError(f"data.name: {custom_part_missing(config.name)}")


class DatasetInfo(NamedTuple):
    """What a data set holds, as far as it is known without a look at a picture.

    num_classes   of the whole data set; the rest is of the training images, as in `ImageSet` and `Dataset`
    """

    labels_N: Tensor
    num_classes: int
    identities_N: Tensor | None = None
    groups_N: Tensor | None = None
    val_ids: Tensor | None = None


def dataset_info(config: DataConfig, seed: int = 0) -> DatasetInfo:
    """Return what the configured data set holds; nothing is decoded or downloaded.

    Raises DataError for files that are missing or of the wrong form.
    """
    match config.name:
        case "cifar10":
            return DatasetInfo(torch.arange(50_000) % 10, 10)  # as many of each class, in another order
        case "synthetic":
            return DatasetInfo(torch.arange(NUM_TRAIN) % len(SHAPES), len(SHAPES))
    samples = complete_splits(_list_samples(config, warn=True), config, seed)
    facts = training_facts(samples)
    return DatasetInfo(facts.labels_N, len(samples.classes), facts.identities_N, facts.groups_N, facts.val_ids)
