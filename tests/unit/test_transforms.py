"""Augmentation against a loop over samples, and normalisation against NumPy, torchvision and PIL."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as torchvision_functional

from trainlib.config.schema.augment import Augment
from trainlib.data.augment.augmentation import Augmentation
from trainlib.data.augment.preprocess import Preprocess
from trainlib.randomness import draw, key

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def random_images(n: int, height: int = 8, width: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def augment(images: Tensor, ids: Tensor, *, epoch: int, **options: Any) -> Tensor:
    return Augmentation(**options)(images, ids, epoch)


def augmented_one_by_one(
    images: Tensor, ids: Tensor, *, seed: int, epoch: int, flip: bool | str, crop_padding: int, fill: str
) -> np.ndarray:
    results = []
    modes: dict[str, Literal["constant", "reflect"]] = {"black": "constant", "reflect": "reflect"}
    for image, sample in zip(images.numpy(), ids, strict=True):
        bits = int(draw(key("augment", seed, epoch), sample))
        row, column = (bits >> 1) % 2**31 % (2 * crop_padding + 1), (bits >> 32) % (2 * crop_padding + 1)
        padded = np.pad(image, ((0, 0), (crop_padding, crop_padding), (crop_padding, crop_padding)), mode=modes[fill])
        result = padded[:, row : row + image.shape[1], column : column + image.shape[2]]
        if flip == "alternating":
            mirrored = int(draw(key("alternating flip", seed), sample)) % 2 != epoch % 2
        else:
            mirrored = bool(flip) and bits % 2 == 1
        results.append(result[:, :, ::-1] if mirrored else result)
    return np.stack(results)


@pytest.mark.parametrize("fill", ["black", "reflect"])
@pytest.mark.parametrize("flip", [False, True, "alternating"])
@pytest.mark.parametrize("crop_padding", [0, 1, 4, 9])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (1, 2)])
def test_augment_is_what_a_loop_over_samples_gives(
    flip: bool | str, crop_padding: int, fill: str, height: int, width: int
) -> None:
    """With borders wider than the image too: NumPy then mirrors the mirror image again."""
    images, ids = random_images(40, height, width), torch.randperm(1000)[:40]
    decisions: dict[str, Any] = {"seed": 3, "epoch": 2, "flip": flip, "crop_padding": crop_padding, "fill": fill}
    result = augment(images, ids, **decisions)
    assert result.dtype == torch.uint8
    np.testing.assert_array_equal(result.numpy(), augmented_one_by_one(images, ids, **decisions))


def test_black_borders_and_random_flips_are_what_nothing_said_means() -> None:
    """And their bits are those of the first version: a run that began with it goes on."""
    assert (Augment().flip, Augment().crop_padding, Augment().fill) == (False, 0, "black")
    images, ids = random_images(50), torch.arange(50)
    augmented = augment(images, ids, seed=7, epoch=3, flip=True, crop_padding=3)
    assert torch.equal(augmented, augment(images, ids, seed=7, epoch=3, flip=True, crop_padding=3, fill="black"))
    digest = hashlib.sha256(augmented.contiguous().numpy().data).hexdigest()
    assert digest.startswith("9b122f1709565b44")


def test_alternating_flips_show_every_image_both_ways_in_every_two_epochs() -> None:
    images, ids = random_images(4_000, 2, 3), torch.randperm(50_000)[:4_000]
    of_epoch = [augment(images, ids, seed=5, epoch=e, flip="alternating", crop_padding=0) for e in range(5)]
    mirrored_N = (of_epoch[0] != images).flatten(1).any(1)
    assert 1_850 < int(mirrored_N.sum()) < 2_150  # half of them, within 5 standard deviations
    for epoch in range(1, 5):
        assert torch.equal(of_epoch[epoch], of_epoch[epoch - 1].flip(3)), epoch
    other_seed = augment(images, ids, seed=6, epoch=0, flip="alternating", crop_padding=0)
    assert 1_850 < int((other_seed != of_epoch[0]).flatten(1).any(1).sum()) < 2_150


@pytest.mark.parametrize("alternating", [True, False])
@pytest.mark.parametrize("fill", ["black", "reflect"])
def test_augment_does_not_depend_on_the_batch_or_its_order(alternating: bool, fill: str) -> None:
    images, ids = random_images(30), torch.arange(100, 130)
    flip = "alternating" if alternating else True
    decisions: dict[str, Any] = {"seed": 0, "epoch": 0, "flip": flip, "crop_padding": 4, "fill": fill}
    whole = augment(images, ids, **decisions)
    order = torch.randperm(30)
    assert torch.equal(augment(images[order], ids[order], **decisions), whole[order])
    pieces = [augment(images[i : i + 7], ids[i : i + 7], **decisions) for i in range(0, 30, 7)]
    assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_another_epoch_or_seed_augments_differently(other: dict[str, Any]) -> None:
    images, ids = random_images(50), torch.arange(50)
    first = augment(images, ids, **{"seed": 0, "epoch": 0, **other}, flip=True, crop_padding=4)
    assert not torch.equal(first, augment(images, ids, seed=0, epoch=0, flip=True, crop_padding=4))


def test_flips_and_offsets_are_uniform_and_independent() -> None:
    num_samples, padding, size = 40_500, 2, 5
    places = torch.arange(size * size, dtype=torch.uint8).view(1, 1, size, size).expand(num_samples, 3, -1, -1)
    ids = torch.arange(num_samples)
    cropped = augment(places, ids, seed=5, epoch=1, flip=False, crop_padding=padding)
    offsets = cropped[:, 0, padding, padding].long()  # the centre shows which of the 25 places was cut out
    flips = (augment(places, ids, seed=5, epoch=1, flip=True, crop_padding=0)[:, 0, 0, 0] != 0).long()
    counts = torch.bincount(offsets * 2 + flips, minlength=50).double()
    expected = num_samples / 50
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 20 < chi_square < 101  # 49 degrees of freedom: outside by chance once in 20,000


def test_augment_and_normalise_take_an_empty_batch() -> None:
    images, ids = random_images(0), torch.empty(0, dtype=torch.int64)
    assert augment(images, ids, seed=0, epoch=0, flip="alternating", crop_padding=4, fill="reflect").shape[0] == 0
    images = augment(images, ids, seed=0, epoch=0, flip=True, crop_padding=4)
    assert images.shape == (0, 3, 8, 8)
    assert Preprocess(MEAN, STD, 16)(images).shape == (0, 3, 16, 16)


def test_normalise_has_the_bits_of_the_documented_formula() -> None:
    images = random_images(10, 32, 32)
    result = Preprocess(MEAN, STD, 32)(images)
    scale = np.array([1 / (255 * std) for std in STD]).astype(np.float32).reshape(3, 1, 1)
    shift = np.array([mean / std for mean, std in zip(MEAN, STD, strict=True)]).astype(np.float32).reshape(3, 1, 1)
    np.testing.assert_array_equal(result.numpy(), images.numpy().astype(np.float32) * scale - shift)
    torchvision_result = torchvision_functional.normalize(images / 255, MEAN, STD)
    torch.testing.assert_close(result, torchvision_result, atol=2e-6, rtol=0)
    assert images.dtype == torch.uint8  # and not written to
    assert torch.equal(images, random_images(10, 32, 32))


@pytest.mark.parametrize("image_size", [16, 20, 48])
def test_normalise_resizes_as_pil_does(image_size: int) -> None:
    images = random_images(4, 32, 32)
    result = Preprocess((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), image_size)(images)
    for image, resized in zip(images.numpy(), result.numpy(), strict=True):
        for channel, resized_channel in zip(image, resized, strict=True):
            pil_image = Image.fromarray(channel.astype(np.float32))
            expected = pil_image.resize((image_size, image_size), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(resized_channel, np.asarray(expected), atol=1e-3)
