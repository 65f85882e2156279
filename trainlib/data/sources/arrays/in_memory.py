"""Data sets passed as Python objects: arrays, or map-style data sets of (image, label) pairs, read into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainlib.data.datasets.dataset import Dataset, ImageSet, channel_statistics
from trainlib.data.datasets.images import InMemoryImages
from trainlib.data.identity.listing import Listing
from trainlib.data.pictures.decoding.decode import picture_pixels
from trainlib.data.sources.folders.layout import name_some
from trainlib.data.targets import are_sets
from trainlib.errors import DataError

TRIED_TWICE = 32  # items of each split; of a transform that changes half of the images none is missed

_CHANGED = (
    "gave {} when it was read again, must be the same each time: leave random transforms out of the data set, and name "
    "them under data.augment, or give them as trainlib.fit(transform=...), where they differ in each epoch and can be "
    "repeated exactly"
)


class MapStyleDataset(Protocol):
    """A map-style data set, as in torch and torchvision: item i is an image and its label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


SplitSource: TypeAlias = MapStyleDataset | tuple[Any, Any] | ImageSet


def image_dataset(train: SplitSource, test: SplitSource, classes: Sequence[str] | None = None) -> Dataset:
    """Make a data set for `trainlib.fit` from two splits, each in one of three forms.

    a pair      images, a uint8 array or tensor [N, H, W], [N, H, W, 3] or [N, 3, H, W], and N whole labels from 0 on;
                with `data.labels: several`, bool [N, C]: whether each image is of each class
    map style   anything with a length whose item i is (image, label); the image a PIL image, or one uint8 array or
                tensor; all of one size. Items are read here, and must be the same each time: random changes belong to
                `data.augment`
    ImageSet    labels, and images that are fetched as they are needed, for data that does not fit into memory

    classes     their names, in the order of the labels; by default the split's own `classes`, else "0", "1", ...
    Every rank must make the same data set, so code that draws random numbers on the way needs a seed.

    Raises DataError naming the split, the value and the rule.
    """
    names = classes if classes is not None else getattr(train, "classes", None)
    _require_same_classes(train, test)
    train_set, test_set = _image_set(train, "train"), _image_set(test, "test")
    if names is None:
        labels_N = train_set.labels_N
        names = [str(label) for label in range(labels_N.shape[1] if are_sets(labels_N) else int(labels_N.max()) + 1)]
        _check_labels("train", labels_N, len(names))
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"classes: got {list(names)}, must be two or more different names")
    for split, image_set in (("train", train_set), ("test", test_set)):
        _check_labels(split, image_set.labels_N, len(names))
    mean, std = channel_statistics(train_set.images)
    counts = {"train": len(train_set.labels_N), "test": len(test_set.labels_N)}
    class_names = tuple(map(str, names))
    return Dataset(train_set, test_set, class_names, mean, std, Listing("given", class_names, counts))


def fingerprint(dataset: Dataset) -> str:
    """Return twelve hex digits of a hash over the labels, the class names and, where they are in memory, the images."""
    digest = hashlib.sha256("\0".join(dataset.class_names).encode())
    for image_set in (dataset.train, dataset.test):
        digest.update(image_set.labels_N.contiguous().numpy().data)
        if isinstance(image_set.images, InMemoryImages):
            images_NCHW = image_set.images.images_NCHW
            digest.update(str(tuple(images_NCHW.shape)).encode())
            digest.update(images_NCHW.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:12]


def _require_same_classes(train: SplitSource, test: SplitSource) -> None:
    """Raise DataError where the splits name their classes themselves, and not alike."""
    own, others = getattr(train, "classes", None), getattr(test, "classes", None)
    if own is not None and others is not None and list(own) != list(others):
        raise DataError(
            f"classes: train has {name_some(list(map(str, own)))} and test has {name_some(list(map(str, others)))}, "
            "must be the same in the same order, as a label is a position in them: give test the classes of train"
        )


def _image_set(split: SplitSource, name: str) -> ImageSet:
    if isinstance(split, ImageSet):
        _check_fetched(split, name)
        return split
    if isinstance(split, str):
        folder = "a folder of pictures belongs into the configuration, data.name=image_folder data.root=..."
        raise DataError(f"{name}: got {split!r}, must be a pair (images, labels), or hold such pairs; {folder}")
    if isinstance(split, tuple):
        if len(split) != 2:
            raise DataError(f"{name}: got a tuple of {len(split)}, must be the pair (images, labels)")
        return _checked(_stacked(split[0], name), split[1], name)
    if len(split) == 0:
        raise DataError(f"{name}: got 0 samples, must be at least 1")
    _require_constant(split, name)
    images, labels = [], []
    for index in range(len(split)):  # iterating would not end where __getitem__ raises no IndexError
        image, label = split[index]
        images.append(_image(image, f"{name}[{index}]"))
        labels.append(label)
        if images[-1].shape != images[0].shape:
            shapes = [list(one.shape[1:]) for one in (images[0], images[-1])]
            raise DataError(f"{name}[{index}]: got an image of {shapes[1]}, must be {shapes[0]} as {name}[0] is")
    return _checked(torch.stack(images), labels, name)


def _require_constant(split: MapStyleDataset, name: str) -> None:
    """Raise DataError if an item changes from one reading to the next: 32 times, one is read twice."""
    for index in (i * max(len(split), TRIED_TWICE) // TRIED_TWICE % len(split) for i in range(TRIED_TWICE)):
        (image, label), (again, label_again) = split[index], split[index]
        same = torch.equal(_image(image, f"{name}[{index}]"), _image(again, f"{name}[{index}]"))
        if not same or not np.array_equal(np.asarray(label), np.asarray(label_again)):
            raise DataError(f"{name}[{index}]: {_CHANGED.format('another label' if same else 'another image')}")


def _check_fetched(split: ImageSet, name: str) -> None:
    """Raise DataError unless an ImageSet has a whole label for each image, and the images are as `Images` says."""
    labels_N, count = split.labels_N, len(split.images)
    if not count:
        raise DataError(f"{name}: got 0 samples, must be at least 1")
    is_set = labels_N.dtype == torch.bool and labels_N.ndim == 2 and len(labels_N) == count
    if not is_set and (labels_N.dtype != torch.int64 or labels_N.shape != (count,)):
        got = f"{labels_N.dtype} {list(labels_N.shape)}"
        raise DataError(f"{name}: got {count} images and labels {got}, must be int64 [{count}] or bool [{count}, C]")
    ids = torch.tensor([0, count - 1])
    first, again = (next(iter(split.images.batches([ids]))) for _ in range(2))
    if first.dtype != torch.uint8 or first.ndim != 4 or first.shape[:2] != (2, 3):
        got = f"{first.dtype} {list(first.shape)}"
        raise DataError(
            f"{name}: got images {got} for two indices, must be torch.uint8 [2, 3, H, W], values from 0 to 255 in RGB"
        )
    if not torch.equal(first, again):
        raise DataError(f"{name}: {_CHANGED.format('another image')}")


def _image(image: Any, place: str) -> Tensor:
    """Convert one image to uint8 [3, H, W]."""
    if isinstance(image, Image.Image):
        return picture_pixels(image).contiguous()
    return _stacked(image[None] if isinstance(image, Tensor) else np.asarray(image)[None], place)[0]


def _stacked(values: Any, place: str) -> Tensor:
    """Convert uint8 images of any layout to a contiguous tensor [N, 3, H, W] on the CPU."""
    images: Tensor = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if images.dtype != torch.uint8:
        raise DataError(
            f"{place}: got values of {images.dtype}, must be uint8, 0 to 255, in RGB; of floats from 0 to 1 make "
            "(255 * images).round() in uint8. Normalising is for data.normalize"
        )
    shape = list(images.shape)
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in shape[1:]:
        raise DataError(f"{place}: got the shape {shape}, must be [N, H, W], [N, H, W, 3] or [N, 3, H, W]")
    return images.expand(-1, 3, -1, -1).contiguous()


def _checked(images_NCHW: Tensor, labels: Any, name: str) -> ImageSet:
    if len(images_NCHW) == 0:
        raise DataError(f"{name}: got 0 samples, must be at least 1")
    try:
        labels_N = torch.as_tensor(np.asarray(labels))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name}: the labels must be whole numbers: {error}") from error
    is_set = labels_N.dtype == torch.bool and labels_N.ndim == 2
    if not is_set and (labels_N.is_floating_point() or labels_N.dtype == torch.bool or labels_N.ndim != 1):
        raise DataError(
            f"{name}: got labels of {labels_N.dtype} and shape {list(labels_N.shape)}, must be whole numbers [N], or "
            "bool [N, C] for several labels each"
        )
    if len(labels_N) != len(images_NCHW):
        raise DataError(f"{name}: got {len(images_NCHW)} images and {len(labels_N)} labels, must be as many")
    return ImageSet(InMemoryImages(images_NCHW), labels_N if is_set else labels_N.long())


def _check_labels(name: str, labels_N: Tensor, num_classes: int) -> None:
    if are_sets(labels_N):
        if labels_N.shape[1] != num_classes:
            raise DataError(f"{name}: got labels {list(labels_N.shape)}, must have {num_classes} columns, one a class")
        return
    least, most = int(labels_N.min()), int(labels_N.max())
    if least < 0 or most >= num_classes:
        raise DataError(
            f"{name}: got labels from {least} to {most}, must be 0 to {num_classes - 1}, one for each class"
        )
