"""The framing of pictures against torchvision.transforms.v2 and Pillow: sizes, places, pixels, and random cuts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as torchvision_functional

from trainlib.data.pictures.framing import Frames, Framing, RandomCrop, needed_pixels, resample
from trainlib.randomness import draw_one, key

SIDES = [(32, 32), (40, 33), (33, 40), (31, 64), (64, 31), (97, 41), (500, 375), (7, 9), (1, 5)]
INTERPOLATIONS = ["nearest", "bilinear", "bicubic"]


def picture(height: int, width: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("side", "size"), [(32, None), (32, 36), (21, 24)])
def test_crop_is_torchvisions_resize_and_center_crop(
    height: int, width: int, interpolation: str, side: int, size: int | None
) -> None:
    image = picture(height, width)
    expected = v2.Compose(
        [v2.Resize(size or side, interpolation=v2.InterpolationMode(interpolation)), v2.CenterCrop(side)]
    )(image)
    assert torch.equal(Framing(side, side, "crop", size, interpolation)(image), expected)


@pytest.mark.parametrize(("height", "width"), [sides for sides in SIDES if min(sides) > 1])
def test_pad_is_torchvisions_resize_of_the_longer_side_and_center_crop(height: int, width: int) -> None:
    image = picture(height, width)
    expected = v2.Compose([v2.Resize(None, max_size=32), v2.CenterCrop(32)])(image)
    assert torch.equal(Framing(32, 32, "pad")(image), expected)


@pytest.mark.parametrize(("height", "width"), SIDES)
def test_squash_is_torchvisions_resize_of_both_sides(height: int, width: int) -> None:
    image = picture(height, width)
    assert torch.equal(Framing(24, 40, "squash")(image), v2.Resize((24, 40))(image))
    cut = v2.Compose([v2.Resize((30, 50)), v2.CenterCrop((24, 40))])(image)
    assert torch.equal(Framing(24, 40, "squash", 30)(image), cut)


@pytest.mark.parametrize(("height", "width"), SIDES)
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_of_an_image_of_two_sides_crop_covers_it_and_pad_fits_inside(height: int, width: int, fit: str) -> None:
    """And the picture keeps its proportions, within what a whole pixel allows."""
    framing = Framing(24, 40, fit, 30 if fit == "crop" else None)
    box = (30, 50) if fit == "crop" else (24, 40)
    scaled = framing.resized(height, width)
    assert scaled[0] == box[0] or scaled[1] == box[1]
    larger = scaled[0] >= box[0] and scaled[1] >= box[1]
    smaller = scaled[0] <= box[0] and scaled[1] <= box[1]
    assert larger if fit == "crop" else smaller
    if min(scaled) > 1:
        scale = max(scaled[0] / height, scaled[1] / width)
        assert abs(scaled[0] - height * scale) < 1
        assert abs(scaled[1] - width * scale) < 1
    image = picture(height, width)
    expected = v2.CenterCrop((24, 40))(v2.Resize(scaled)(image))
    assert torch.equal(framing(image), expected)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pillow_resamples_where_it_is_asked_to(interpolation: str, channels: int) -> None:
    image = picture(97, 41, channels)
    pixels = image.permute(1, 2, 0).numpy()
    pillow = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    resized = pillow.resize((32, 75), Image.Resampling[interpolation.upper()])
    expected = np.asarray(resized).reshape(75, 32, channels)[22:54]
    found = Framing(32, 32, interpolation=interpolation, pillow=True)(image)
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("interpolation", [*INTERPOLATIONS, "lanczos"])
def test_the_layout_and_number_of_channels_change_no_bit(interpolation: str) -> None:
    image = picture(61, 47)
    expected = resample(image, 24, 32, interpolation)
    channels_last = image[None].contiguous(memory_format=torch.channels_last)[0]
    assert torch.equal(resample(channels_last, 24, 32, interpolation), expected)
    framed = torch.nn.functional.pad(image, (3, 5, 7, 2))[:, 7:68, 3:50]
    assert torch.equal(resample(framed, 24, 32, interpolation), expected)
    for channel in range(3):
        assert torch.equal(resample(image[channel : channel + 1], 24, 32, interpolation)[0], expected[channel])


def test_every_processor_gives_the_same_bits() -> None:
    """With torch's kernels for AVX2, if this one has it, and without: as on a user's computer and on a cluster."""
    program = (
        "import hashlib, torch; from trainlib.data.pictures.framing import resample;"
        "x = torch.randint(0, 256, (3, 97, 81), dtype=torch.uint8, generator=torch.Generator().manual_seed(1));"
        "y = [resample(x, 40, 56, name) for name in ('nearest', 'bilinear', 'bicubic', 'lanczos')];"
        "print(hashlib.sha256(torch.cat(y).contiguous().numpy().data).hexdigest(), end='')"
    )
    plain = os.environ | {"ATEN_CPU_CAPABILITY": "default"}
    found = subprocess.run([sys.executable, "-c", program], env=plain, capture_output=True, check=True, text=True)
    image = torch.randint(0, 256, (3, 97, 81), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    here = torch.cat([resample(image, 40, 56, name) for name in ("nearest", "bilinear", "bicubic", "lanczos")])
    assert found.stdout == hashlib.sha256(here.contiguous().numpy().data).hexdigest()


@pytest.mark.parametrize(
    ("height", "width", "target"), [(9, 1, (5, 6)), (2, 1, (1, 7)), (9, 6, (5, 1)), (4, 6, (1, 1))]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_column(height: int, width: int, target: tuple[int, int], channels: int) -> None:
    """Of which torch by itself gives other bytes of its memory where EXIF turned a grey one, or ends with an error."""
    image = picture(height, width, channels)
    numbers = [Image.fromarray(plane.float().numpy()) for plane in image]
    expected = np.stack([np.asarray(plane.resize(target[::-1], Image.Resampling.BILINEAR)) for plane in numbers])
    turned = torch.empty_strided(image.shape, (1, channels, channels * height), dtype=torch.uint8).copy_(image)
    for same in (image, turned, image.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        assert np.abs(resample(same, *target, "bilinear").numpy() - expected).max() <= 1
        assert np.abs(resample(torch.stack([same, same]), *target, "bilinear")[1].numpy() - expected).max() <= 1


def test_a_picture_too_long_for_its_width_is_refused_before_it_is_scaled() -> None:
    with pytest.raises(ValueError, match="200000 x 1 pixels, too long for its width"):
        Framing(1024, 1024)(torch.zeros(3, 1, 200_000, dtype=torch.uint8))


def torchvision_box(crop: RandomCrop, index: int, epoch: int, height: int, width: int, patch: Any) -> dict[str, int]:
    """Let torchvision choose the box with our draws in place of its generator's."""
    bits = iter([draw_one(key(index, folded=key("crop", crop.seed, epoch)), counter) for counter in range(40)])

    def uniform(tensor: Tensor, low: float, high: float) -> Tensor:
        return tensor.fill_(float(low) + (float(high) - float(low)) * (next(bits) / 2**63))

    attempts: list[int] = []

    def whole(_low: int, high: int, size: tuple[int]) -> Tensor:
        return torch.full(size, int(next(bits) / 2**63 * high))

    def skipping(tensor: Tensor, low: float, high: float) -> Tensor:
        attempts.append(1)
        if len(attempts) > 1 and len(attempts) % 2:  # an attempt that failed drew no place
            next(bits), next(bits)
        return uniform(tensor, low, high)

    patch.setattr(Tensor, "uniform_", skipping)
    patch.setattr(torch, "randint", whole)
    transform = v2.RandomResizedCrop((crop.height, crop.width), crop.scale, crop.ratio)
    found: dict[str, int] = transform.make_params([torch.empty(3, height, width)])
    patch.undo()
    return found


@pytest.mark.parametrize(
    ("scale", "ratio", "sides"),
    [
        ((0.08, 1.0), (3 / 4, 4 / 3), (375, 500)),
        ((0.08, 1.0), (3 / 4, 4 / 3), (40, 33)),
        ((0.5, 1.0), (0.2, 5.0), (97, 41)),
        ((1.0, 1.0), (3 / 4, 4 / 3), (20, 90)),  # never inside: the centre, cut to the widest ratio
        ((1.0, 1.0), (3 / 4, 4 / 3), (90, 20)),
        ((1.0, 1.0), (1.0, 1.0), (50, 50)),
    ],
)
def test_for_the_same_draws_a_random_crop_is_torchvisions(
    scale: tuple[float, float], ratio: tuple[float, float], sides: tuple[int, int]
) -> None:
    crop = RandomCrop(3, 24, 24, scale, ratio)
    image, boxes = picture(*sides), set()
    with pytest.MonkeyPatch.context() as patch:
        for index in range(100):
            params = torchvision_box(crop, index, 2, *sides, patch)
            box = crop.box(index, 2, *sides)
            assert box == (params["top"], params["left"], params["height"], params["width"])
            boxes.add(box)
            expected = torchvision_functional.resized_crop(image, **params, size=[24, 24])
            assert torch.equal(crop(image, index, 2), expected)
    assert len(boxes) > 80 or scale == (1.0, 1.0)


def test_random_crops_are_distributed_as_torchvisions() -> None:
    """Two-sample Kolmogorov-Smirnov distances of place, sides, area and ratio, below the 0.1 % quantile."""
    n, sides = 4_000, (90, 120)
    crop = RandomCrop(0, 24, 24)
    ours = np.array([crop.box(index, index % 7, *sides) for index in range(n)], dtype=float)
    torch.manual_seed(0)
    transform, empty = v2.RandomResizedCrop(24), torch.empty(3, *sides)
    theirs = np.array([[*transform.make_params([empty]).values()] for _ in range(n)], dtype=float)
    for name, ours_N, theirs_N in zip(NAMES, properties(ours), properties(theirs), strict=True):
        points = np.concatenate([ours_N, theirs_N])
        below = [np.searchsorted(np.sort(values_N), points, "right") for values_N in (ours_N, theirs_N)]
        assert np.abs(below[0] - below[1]).max() / n < 1.95 * (2 / n) ** 0.5, name


NAMES = ("top", "left", "height", "width", "area", "ratio")


def properties(boxes_N4: np.ndarray) -> list[np.ndarray]:
    height_N, width_N = boxes_N4[:, 2], boxes_N4[:, 3]
    return [*boxes_N4.T, height_N * width_N, width_N / height_N]


def test_crops_differ_between_samples_epochs_and_seeds_and_come_back() -> None:
    crop = RandomCrop(0, 24, 24)
    boxes = {(index, epoch): crop.box(index, epoch, 375, 500) for index in range(20) for epoch in range(5)}
    assert len(set(boxes.values())) == 100
    assert boxes[3, 2] == RandomCrop(0, 24, 24).box(3, 2, 375, 500)
    assert boxes[3, 2] != RandomCrop(1, 24, 24).box(3, 2, 375, 500)
    assert boxes[3, 2] == (9, 182, 319, 294)  # on every machine


def test_a_decoder_gives_enough_for_training_and_evaluation() -> None:
    assert needed_pixels(Frames(Framing(224, 224, size=256), Framing(176, 176))) == 256
    assert needed_pixels(Frames(Framing(224, 224), RandomCrop(0, 224, 224))) == 305  # 224 / sqrt(0.54)
    assert needed_pixels(Frames(Framing(224, 320, "pad"), Framing(224, 320, "squash"))) == 320


def test_evaluation_and_training_have_their_own_frames() -> None:
    frames = Frames(Framing(32, 32), RandomCrop(0, 24, 16))
    image = picture(50, 40)
    assert frames.shape(None) == (32, 32)
    assert frames.shape(1) == (24, 16)
    assert torch.equal(frames(image, 5, None), frames.evaluation(image))
    assert torch.equal(frames(image, 5, 1), RandomCrop(0, 24, 16)(image, 5, 1))
    assert torch.equal(Frames(Framing(32, 32), Framing(24, 24))(image, 5, 1), Framing(24, 24)(image))
