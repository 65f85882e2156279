"""The data set `synthetic`: 32 x 32 RGB drawings of ten shapes, the same bits everywhere, made in under a second.

Shapes vary in place, size, rotation, colours and polarity (light on dark or dark on light), over a shaded background
with distracting dots and pixel noise. No class is another one's mirror image, so flips are safe.

Random numbers are `randomness.draw`; the rest is +, -, *, / and sqrt on float32, which IEEE 754 rounds in one way only.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainlib.data.datasets.dataset import Dataset, ImageSet, channel_statistics
from trainlib.data.datasets.images import InMemoryImages
from trainlib.data.identity.listing import Listing
from trainlib.randomness import draw, key

SIZE = 32
NUM_TRAIN, NUM_TEST = 8_000, 2_000
NUM_DOTS = 4  # distracting ones in each image
NOISE = 0.1  # of the range 0..1
CELL = 0.36  # a bar of the stripes or a field of the checkerboard; five of them fill a square
SQRT_HALF = 0.70710678


def make_synthetic(num_train: int = NUM_TRAIN, num_test: int = NUM_TEST, seed: int = 0) -> Dataset:
    """Draw the data set. Sample i is of class i % 10, so that the classes are equally frequent.

    num_train, num_test     numbers of images; the first n of a larger set are the set of n
    seed                    another seed draws other images
    """
    train = _make_split(key("synthetic train", seed), num_train)
    test = _make_split(key("synthetic test", seed), num_test)
    mean, std = channel_statistics(train.images)
    listing = Listing("synthetic", tuple(SHAPES), {"train": num_train, "test": num_test})
    return Dataset(train, test, listing.classes, mean, std, listing)


def _make_split(stream: int, num_images: int) -> ImageSet:
    ids = torch.arange(num_images)
    labels = ids % len(SHAPES)
    images_NCHW = torch.empty((num_images, 3, SIZE, SIZE), dtype=torch.uint8)
    for label, shape in enumerate(SHAPES.values()):
        images_NCHW[labels == label] = _draw_images(shape, stream, ids[labels == label])
    return ImageSet(InMemoryImages(images_NCHW), labels)


def _draw_images(shape: Callable[[Tensor, Tensor], Tensor], stream: int, ids_N: Tensor) -> Tensor:
    """Draw a shape over its background: uint8 [N, 3, 32, 32]; image i depends on `ids_N[i]` alone."""
    random = _Uniform(stream, ids_N)
    axis = (torch.arange(SIZE) + 0.5) / (SIZE / 2) - 1
    x, y = axis[None, None, :], axis[None, :, None]  # -1 to 1, right and down

    radius = random(0.35, 0.75)
    u, v = x - random(-0.3, 0.3), y - random(-0.3, 0.3)
    cosine, sine = _rotation(random(-0.12, 0.12))
    u, v = (u * cosine - v * sine) / radius, (u * sine + v * cosine) / radius
    coverage_NHW = _coverage(shape(u, v) * radius)

    dots_NHW = torch.zeros_like(coverage_NHW)
    for _ in range(NUM_DOTS):
        a, b, dot_radius = x - random(-1, 1), y - random(-1, 1), random(0.05, 0.12)
        dots_NHW = torch.maximum(dots_NHW, _coverage((a * a + b * b).sqrt() - dot_radius))

    light_on_dark, contrast, middle = random(0, 1) < 0.5, random(0.25, 0.8), random(0.4, 0.6)
    half = torch.where(light_on_dark, contrast, -contrast) / 2
    shade_NHW = random(-0.12, 0.12) * x + random(-0.12, 0.12) * y
    channels = []
    for channel in range(3):
        background = middle - half + random(-0.2, 0.2) + shade_NHW
        foreground = middle + half + random(-0.2, 0.2)
        background = background + (random(0, 1) - background) * dots_NHW
        values = background + (foreground - background) * coverage_NHW + _noise(stream, ids_N, channel)
        channels.append((values * 255 + 0.5).clamp(0, 255).to(torch.uint8))
    return torch.stack(channels, dim=1)


class _Uniform:
    """A generator of uniform random numbers for the samples `ids_N`: each call draws one more, float32 [N, 1, 1]."""

    def __init__(self, stream: int, ids_N: Tensor):
        self.stream, self.ids_N, self.num_calls = stream, ids_N, 0

    def __call__(self, low: float, high: float) -> Tensor:
        bits_N = draw(key(self.stream, "parameter", self.num_calls), self.ids_N)
        self.num_calls += 1
        unit_N = (bits_N >> 39).float() / 2**24  # the upper 24 bits: exact
        return (unit_N * (high - low) + low).view(-1, 1, 1)


def _noise(stream: int, ids_N: Tensor, channel: int) -> Tensor:
    """Draw pixel noise, float32 [N, 32, 32], uniform in -NOISE to NOISE; six pixels from each draw's lowest 6 bytes."""
    num_draws = -(-SIZE * SIZE // 6)
    bits = draw(key(stream, "noise", channel), ids_N[:, None] * num_draws + torch.arange(num_draws))
    bytes_N = torch.stack([bits >> shift & 255 for shift in range(0, 48, 8)], dim=2).flatten(1)
    return (bytes_N[:, : SIZE * SIZE].reshape(-1, SIZE, SIZE).float() - 127.5) * (NOISE / 127.5)


def _rotation(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of 2 * atan(t), without library functions, which may round differently elsewhere."""
    square = t * t
    return (1 - square) / (1 + square), 2 * t / (1 + square)


def _coverage(distance: Tensor) -> Tensor:
    """Return the part of each pixel inside a shape, 0 to 1, from the signed distance of its centre to the outline."""
    return (0.5 - distance * (SIZE / 2)).clamp(0, 1)


# Signed distances, negative inside, at (u, v) of a shape of radius 1 around the origin; float32 [N, 32, 32].


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return (u * u + v * v).sqrt() - 1


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return ((u * u + v * v).sqrt() - 0.8).abs() - 0.2


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 2.5 * CELL


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(v - 0.7, u.abs() * 0.88 - v * 0.47 - 0.47)


def _plus(u: Tensor, v: Tensor) -> Tensor:
    u, v = u.abs(), v.abs()
    return torch.maximum(torch.minimum(u, v) - 0.26, torch.maximum(u, v) - 1)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return _plus((u + v) * SQRT_HALF, (u - v) * SQRT_HALF)


def _bars(position: Tensor) -> Tensor:
    """Return the distance to bars across the axis, CELL wide and CELL apart, one of them in the middle."""
    phase = position / (2 * CELL) + 0.5
    return ((phase - phase.floor() - 0.5).abs() - 0.25) * (2 * CELL)


def _horizontal_stripes(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(_bars(v), _square(u, v))


def _vertical_stripes(u: Tensor, v: Tensor) -> Tensor:
    return _horizontal_stripes(v, u)


def _checkerboard(u: Tensor, v: Tensor) -> Tensor:
    across, along = _bars(u), _bars(v)
    one_of_them = torch.maximum(torch.minimum(across, along), -torch.maximum(across, along))
    return torch.maximum(-one_of_them, _square(u, v))


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    lower = v + 0.5
    return torch.maximum(_disc(u, v), 0.8 - (u * u + lower * lower).sqrt())


SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "plus": _plus,
    "cross": _cross,
    "horizontal stripes": _horizontal_stripes,
    "vertical stripes": _vertical_stripes,
    "checkerboard": _checkerboard,
    "crescent": _crescent,
}
