"""The data sets: images as uint8 arrays, fetched by index, and what happens to a batch on its device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainlib.config.schema import DataConfig
from trainlib.data.cifar10 import load_cifar10
from trainlib.data.image_folder import load_image_folder
from trainlib.data.images import Dataset, Images, ImageSet
from trainlib.data.synthetic import make_synthetic
from trainlib.data.transforms import augment, normalise

__all__ = ["Dataset", "ImageSet", "Images", "augment", "load_data", "normalise"]


def load_data(
    config: DataConfig, *, stop_requested: Callable[[], bool] = lambda: False, is_main: bool = True
) -> Dataset:
    """The data set that the configuration names, whole and in its own order.

    stop_requested  looked at while images are decoded and while another process prepares the data
    is_main         show progress and warnings; true on one rank
    `image_folder` images come in `image_size`, the others in their own 32x32.
    Raises DataError for data that is missing, damaged or of the wrong form, StoppedError when asked to stop.
    """
    match config.name:
        case "cifar10":
            return load_cifar10(Path(config.root), stop_requested=stop_requested)
        case "image_folder":
            return load_image_folder(
                Path(config.root), config.image_size, stop_requested=stop_requested, is_main=is_main
            )
        case "synthetic":
            return make_synthetic()
