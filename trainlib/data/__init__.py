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
from trainlib.data.sources.class_folders import find_images, list_images
from trainlib.data.sources.image_folder import load_class_folder, load_image_folder
from trainlib.data.sources.in_memory import fingerprint, image_dataset
from trainlib.data.sources.synthetic import NUM_TRAIN, SHAPES, make_synthetic
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
    "load_class_folder",
    "load_data",
]


def load_data(
    config: DataConfig, *, stop_requested: Callable[[], bool] = lambda: False, is_main: bool = True
) -> Dataset:
    """Load the whole data set that the configuration names, in its own order.

    stop_requested  called again and again while images are decoded or another process decodes them; True ends that
    is_main         True on the one rank that shows progress and warnings
    Images of `image_folder` have the configured `image_size`, the others their own 32 x 32 pixels.

    Raises DataError for data that is missing, damaged or of the wrong form, StoppedError when asked to stop.
    """
    match config.name:
        case "cifar10":
            return load_cifar10(Path(config.root), stop_requested=stop_requested)
        case "image_folder":
            return load_image_folder(
                Path(config.root),
                config.image_size,
                verify=config.verify == "full",
                stop_requested=stop_requested,
                is_main=is_main,
            )
        case "synthetic":
            return make_synthetic()
    raise UserError(f"data.name: {custom_part_missing(config.name)}")


class DatasetInfo(NamedTuple):
    """The labels of the training images, including those for validation, int64 [N], and the number of classes."""

    labels_N: Tensor
    num_classes: int


def dataset_info(config: DataConfig) -> DatasetInfo:
    """Return what the configured data set holds; nothing is decoded or downloaded.

    Raises DataError for folders that are missing or of the wrong form.
    """
    match config.name:
        case "cifar10":
            return DatasetInfo(torch.arange(50_000) % 10, 10)  # as many of each class, in another order
        case "image_folder":
            train, _ = list_images(Path(config.root))
            return DatasetInfo(train.labels([*train.classes]), len(train.classes))
        case "synthetic":
            return DatasetInfo(torch.arange(NUM_TRAIN) % len(SHAPES), len(SHAPES))
    raise UserError(f"data.name: {custom_part_missing(config.name)}")
