"""Data sets from Python: every form becomes the same uint8 images, and what cannot is refused with the place."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainlib.data import Dataset, ImageSet, fingerprint, image_dataset
from trainlib.data.datasets.images import InMemoryImages
from trainlib.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)  # [N, H, W, 3]
LABELS = [0, 1, 2, 1, 0]
TEST = (PIXELS[:2], [0, 1])


class Listed(list[tuple[Any, Any]]):
    """A map-style data set."""


def images_of(dataset: Dataset) -> Tensor:
    images = dataset.train.images
    assert isinstance(images, InMemoryImages)
    return images.images_NCHW


FORMS: dict[str, Any] = {
    "NHWC array": (PIXELS, LABELS),
    "NCHW array": (PIXELS.transpose(0, 3, 1, 2), np.array(LABELS, np.int32)),
    "tensor": (torch.from_numpy(PIXELS), torch.tensor(LABELS)),
    "list of arrays": (list(PIXELS), LABELS),
    "PIL images": Listed(zip([Image.fromarray(pixels) for pixels in PIXELS], LABELS, strict=True)),
    "RGBA images": Listed(zip([Image.fromarray(pixels).convert("RGBA") for pixels in PIXELS], LABELS, strict=True)),
    "single arrays": Listed(zip(PIXELS, LABELS, strict=True)),
    "single tensors": Listed(zip(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), torch.tensor(LABELS), strict=True)),
    "ImageSet": ImageSet(InMemoryImages(torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())), torch.tensor(LABELS)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_images(form: str) -> None:
    dataset = image_dataset(FORMS[form], TEST)
    assert images_of(dataset).dtype == torch.uint8
    assert np.array_equal(images_of(dataset).numpy(), PIXELS.transpose(0, 3, 1, 2))
    assert dataset.train.labels_N.tolist() == LABELS
    assert dataset.train.labels_N.dtype == torch.int64
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.mean == pytest.approx(PIXELS.reshape(-1, 3).mean(0) / 255, rel=1e-12)
    assert dataset.std == pytest.approx(PIXELS.reshape(-1, 3).std(0) / 255, rel=1e-12)
    assert fingerprint(dataset) == fingerprint(image_dataset(FORMS["NHWC array"], TEST))


def test_grey_images_get_three_equal_channels() -> None:
    for grey in (PIXELS[..., 0], PIXELS[..., :1], PIXELS[..., 0][:, None]):
        images = images_of(image_dataset((grey, LABELS), TEST))
        assert all(np.array_equal(images[:, channel].numpy(), PIXELS[..., 0]) for channel in range(3))


def test_classes_are_those_of_the_data_set_or_the_given_ones() -> None:
    listed = Listed(FORMS["single arrays"])
    listed.classes = ["a", "b", "c", "never seen"]  # type: ignore[attr-defined]
    assert image_dataset(listed, TEST).class_names == ("a", "b", "c", "never seen")
    assert image_dataset(listed, TEST, classes=["x", "y", "z"]).class_names == ("x", "y", "z")


def test_the_arrays_may_change_afterwards() -> None:
    pixels = PIXELS.copy()
    dataset = image_dataset((pixels, LABELS), TEST)
    pixels[:] = 0
    assert images_of(dataset).any()


def test_the_fingerprint_knows_every_pixel_label_class_and_split() -> None:
    other_pixel = PIXELS.copy()
    other_pixel[4, 7, 5, 2] ^= 1
    found = [
        fingerprint(image_dataset(train, test, classes))
        for train, test, classes in [
            ((PIXELS, LABELS), TEST, None),
            ((other_pixel, LABELS), TEST, None),
            ((PIXELS, [0, 1, 2, 1, 1]), TEST, None),
            ((PIXELS, LABELS), (PIXELS[1:3], [0, 1]), None),
            ((PIXELS, LABELS), TEST, ["a", "b", "c"]),
            ((PIXELS.transpose(0, 2, 1, 3), LABELS), TEST, None),
        ]
    ]
    assert len(set(found)) == len(found)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "floats": ((PIXELS / 255, LABELS), None, r"train: got values of torch.float64, must be uint8, 0 to 255"),
    "no images": ((np.zeros((5, 7), np.uint8), LABELS), None, r"train: got the shape \[5, 7\], must be \[N, H, W\]"),
    "four channels": ((np.zeros((5, 8, 8, 4), np.uint8), LABELS), None, r"got the shape \[5, 8, 8, 4\]"),
    "fewer labels": ((PIXELS, LABELS[:3]), None, "train: got 5 images and 3 labels"),
    "float labels": ((PIXELS, [0.5] * 5), None, "must be whole numbers"),
    "text labels": ((PIXELS, ["cat"] * 5), None, "must be whole numbers"),
    "one-hot labels": ((PIXELS, np.eye(3, dtype=int)[LABELS]), None, r"shape \[5, 3\], must be whole numbers \[N\]"),
    "too few classes": ((PIXELS, LABELS), ["a", "b"], "train: got labels from 0 to 2, must be 0 to 1"),
    "negative": ((PIXELS, [-1, 0, 1, 2, 0]), None, "train: got labels from -1 to 2"),
    "below 0": ((PIXELS, [0, -1, 0, 0, 0]), None, "train: got labels from -1 to 0"),
    "a folder": ("photos", None, "train: got 'photos', must be a pair .* data.name=image_folder data.root="),
    "one class": ((PIXELS, [0] * 5), None, "must be two or more different names"),
    "a name twice": ((PIXELS, LABELS), ["a", "b", "a"], "must be two or more different names"),
    "sizes": (
        Listed([(PIXELS[0], 0), (PIXELS[1, :5], 1)]),
        None,
        r"train\[1\]: got an image of \[5, 6\], must be \[8, 6\]",
    ),
    "a triple": ((PIXELS, LABELS, 3), None, "train: got a tuple of 3, must be the pair"),
    "nothing": (Listed(), None, "train: got 0 samples"),
    "no samples": ((PIXELS[:0], []), None, "train: got 0 samples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_data_set_is_refused(case: str) -> None:
    train, classes, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        image_dataset(train, TEST, classes)


def test_labels_of_the_test_split_are_those_of_the_classes() -> None:
    with pytest.raises(DataError, match="test: got labels from 0 to 3, must be 0 to 2"):
        image_dataset((PIXELS, LABELS), (PIXELS[:2], [0, 3]))


class Fetched:
    """Images of one's own, which are made of these as they are asked for."""

    def __init__(self, *pixels_NCHW: torch.Tensor):
        self.turns = itertools.cycle(pixels_NCHW)
        self.count = len(pixels_NCHW[0])

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device) -> Fetched:
        return self

    def batches(self, ids: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        return iter([next(self.turns)[ids_B] for ids_B in ids])


IMAGES = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
FETCHED: dict[str, tuple[Fetched, torch.Tensor, str]] = {
    "floats": (Fetched(IMAGES / 255), torch.arange(6) % 2, "got images torch.float32 .* must be torch.uint8"),
    "16 bits": (Fetched(IMAGES.short() * 257), torch.arange(6) % 2, "got images torch.int16"),
    "channels last": (
        Fetched(IMAGES.permute(0, 2, 3, 1)),
        torch.arange(6) % 2,
        "got images .* must be torch.uint8 .2, 3, H, W.",
    ),
    "grey": (Fetched(IMAGES[:, :1]), torch.arange(6) % 2, "got images .* must be torch.uint8 .2, 3, H, W."),
    "random": (Fetched(IMAGES, IMAGES.flip(3)), torch.arange(6) % 2, "gave another image when it was read again"),
    "few labels": (Fetched(IMAGES), torch.arange(3) % 2, "got 6 images and labels torch.int64 .3., must be int64 .6."),
    "many labels": (Fetched(IMAGES), torch.arange(9) % 2, "got 6 images and labels torch.int64 .9."),
    "float labels": (Fetched(IMAGES), torch.zeros(6), "got 6 images and labels torch.float32 .6."),
    "none": (Fetched(IMAGES[:0]), torch.arange(0), "got 0 samples"),
}


@pytest.mark.parametrize("case", FETCHED)
@pytest.mark.parametrize("split", ["train", "test"])
def test_images_of_ones_own_that_are_not_as_they_must_be_are_refused(case: str, split: str) -> None:
    images, labels_N, message = FETCHED[case]
    good = ImageSet(Fetched(IMAGES), torch.arange(6) % 2)
    splits = {"train": good, "test": good} | {split: ImageSet(images, labels_N)}
    with pytest.raises(DataError, match=f"{split}: {message}"):
        image_dataset(splits["train"], splits["test"])
