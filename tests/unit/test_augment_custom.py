"""Transforms of a user's own: what they get, what is refused, and data sets that draw by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import trainlib
from trainlib.data.augment.custom import CustomTransform
from trainlib.data.augment.draws import Draws
from trainlib.data.sources.arrays.in_memory import image_dataset
from trainlib.errors import DataError, UserError
from trainlib.randomness import draw


@trainlib.transform
def darken(images_NCHW: Tensor, indices_N: Tensor, key: int) -> Tensor:
    """Halve the values of half of the images."""
    shifts_N = (draw(key, indices_N) & 1).to(torch.uint8)
    return images_NCHW >> shifts_N.view(-1, 1, 1, 1)


def test_it_gets_the_batch_and_its_indices_and_draws_by_them() -> None:
    images, ids = torch.full((200, 3, 8, 8), 200, dtype=torch.uint8), torch.arange(200)
    changed = CustomTransform(darken).checked(3, 8, 8)(images, Draws(1, ids))
    dark_N = changed[:, 0, 0, 0] == 100
    assert 60 < int(dark_N.sum()) < 140
    order = torch.randperm(200)
    assert torch.equal(CustomTransform(darken)(images, Draws(1, ids[order])), changed[order])


def shuffled(images: Tensor, indices: Tensor, key: int) -> Tensor:
    return images.flip(0)


def unseeded(images: Tensor, indices: Tensor, key: int) -> Tensor:
    return images ^ torch.randint(0, 256, images.shape, dtype=torch.uint8)


REFUSED: dict[str, tuple[Any, str]] = {
    "floats": (
        lambda images, indices, key: images / 255,
        r"returned torch.float32 \[8, 3, 16, 16\] on cpu, must return",
    ),
    "another shape": (lambda images, indices, key: images[:, :, 1:], r"torch.uint8 \[8, 3, 15, 16\]"),
    "no tensor": (lambda images, indices, key: images.numpy(), "returned a ndarray, must return a tensor"),
    "nothing": (lambda images, indices, key: None, "returned a NoneType"),
    "the batch": (shuffled, "shuffled gives other images in smaller batches, must .* trainlib.randomness.draw"),
    "its own numbers": (unseeded, "unseeded gives other images for the same indices and key: draw random numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_transform_is_refused(case: str) -> None:
    function, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        CustomTransform(function).checked(3, 16, 16)


def test_a_function_of_other_arguments_is_refused_by_the_decorator() -> None:
    with pytest.raises(UserError, match=r"transform: <lambda> must take .*\(images_NCHW, indices_N, key\)"):
        trainlib.transform(lambda images: images)


class Drawing:
    """Images that are mirrored, or labels that are changed, at every reading anew."""

    def __init__(self, *, images: bool, labels: bool = False, count: int = 50):
        generator = np.random.default_rng(0)
        self.pixels = generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        self.random = np.random.default_rng(1)
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.pixels[index]
        mirrored = self.images and self.random.random() < 0.5
        return image[:, ::-1] if mirrored else image, index % 2 ^ int(self.labels and self.random.random() < 0.5)


@pytest.mark.parametrize("count", [2, 50, 500])
def test_a_data_set_that_draws_at_each_reading_is_refused(count: int) -> None:
    steady = Drawing(images=False, count=count)
    assert len(image_dataset(steady, steady).train.labels_N) == count
    with pytest.raises(DataError, match=r"train\[\d+\]: gave another image when it was read again.* data.augment"):
        image_dataset(Drawing(images=True, count=count), steady)
    with pytest.raises(DataError, match=r"test\[\d+\]: gave another label when it was read again"):
        image_dataset(steady, Drawing(images=False, labels=True, count=count))
