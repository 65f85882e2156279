"""An embedded data set: 32x32 RGB drawings of ten shapes, the same bits everywhere, made in about a second.

Shapes vary in place, size, rotation, colours and polarity (light on dark or dark on light), over a shaded background
with distracting dots and pixel noise. Every class looks the same mirrored as another sample of it, so flips are safe.

Random numbers are `randomness.draw`; the rest is +, -, *, / and sqrt on float32, which IEEE 754 rounds in one way only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from trainlib.data.images import Dataset, ImageSet, ResidentImages, channel_statistics
from trainlib.randomness import draw, key

SIZE = 32
NUM_TRAIN, NUM_TEST = 8_000, 2_000
NUM_DOTS = 4  # distracting ones in each image
NOISE = 0.1  # of the range 0..1

Array = npt.NDArray[np.float32]
SQRT_HALF = 0.70710678
CELL = 0.36  # of a pattern; five fill a square


def make_synthetic(num_train: int = NUM_TRAIN, num_test: int = NUM_TEST, seed: int = 0) -> Dataset:
    """The drawings: sample i is of class i % 10, so that the classes are equally frequent.

    num_train, num_test     images; the first n of a larger set are the set of n
    seed                    another seed draws other images
    """
    train, test = (
        _make_split(key("synthetic train", seed), num_train),
        _make_split(key("synthetic test", seed), num_test),
    )
    mean, std = channel_statistics(train.images)
    return Dataset(train, test, tuple(SHAPES), mean, std)


def _make_split(stream: int, num_images: int) -> ImageSet:
    images_NCHW = np.empty((num_images, 3, SIZE, SIZE), np.uint8)
    for label, shape in enumerate(SHAPES.values()):
        ids_N = torch.arange(label, num_images, len(SHAPES))
        images_NCHW[label :: len(SHAPES)] = _draw_images(shape, stream, ids_N)
    return ImageSet(ResidentImages(torch.from_numpy(images_NCHW)), torch.arange(num_images) % len(SHAPES))


def _draw_images(shape: Callable[[Array, Array], Array], stream: int, ids_N: torch.Tensor) -> np.ndarray:
    """uint8 [N, 3, 32, 32]: the shape over its background; image i depends on `ids_N[i]` alone."""
    random = _Uniform(stream, ids_N)
    axis = (np.arange(SIZE, dtype=np.float32) + 0.5) / (SIZE / 2) - 1
    x, y = axis[None, None, :], axis[None, :, None]  # -1 to 1, right and down

    radius = random(0.35, 0.75)
    u, v = x - random(-0.3, 0.3), y - random(-0.3, 0.3)
    cosine, sine = _rotation(random(-0.12, 0.12))
    u, v = (u * cosine - v * sine) / radius, (u * sine + v * cosine) / radius
    coverage_NHW = _coverage(shape(u, v) * radius)

    light_on_dark = random(0, 1) < 0.5
    contrast = random(0.25, 0.8)
    middle = random(0.4, 0.6)
    half = np.where(light_on_dark, contrast, -contrast) / 2
    shade_NHW = random(-0.12, 0.12) * x + random(-0.12, 0.12) * y
    dots_NHW = np.zeros_like(coverage_NHW)
    for _ in range(NUM_DOTS):
        a, b, dot_radius = x - random(-1, 1), y - random(-1, 1), random(0.05, 0.12)
        dots_NHW = np.maximum(dots_NHW, _coverage(np.sqrt(a * a + b * b) - dot_radius))

    images = np.empty((len(ids_N), 3, SIZE, SIZE), np.uint8)
    for channel in range(3):
        background = middle - half + random(-0.2, 0.2) + shade_NHW
        foreground = middle + half + random(-0.2, 0.2)
        background += (random(0, 1) - background) * dots_NHW
        values = background + (foreground - background) * coverage_NHW + _noise(stream, ids_N, channel)
        images[:, channel] = np.clip(values * 255 + 0.5, 0, 255)
    return images


class _Uniform:
    """Each call draws one more float32 [N, 1, 1], uniform over an interval, for the samples `ids_N`."""

    def __init__(self, stream: int, ids_N: torch.Tensor):
        self.stream, self.ids_N, self.num_calls = stream, ids_N, 0

    def __call__(self, low: float, high: float) -> Array:
        bits_N = draw(key(self.stream, "parameter", self.num_calls), self.ids_N).numpy()
        self.num_calls += 1
        unit_N = (bits_N >> 39).astype(np.float32) / 2**24  # the upper 24 bits: exact
        return (low + high - low * unit_N)[:, None, None]


def _noise(stream: int, ids_N: torch.Tensor, channel: int) -> Array:
    """float32 [N, 32, 32] around zero: uniform up to NOISE: a draw's lower 48 bits make six pixels."""
    num_pixels = SIZE * SIZE
    num_draws = -(-num_pixels // 6)
    counters = ids_N[:, None] * num_draws + torch.arange(num_draws)
    words = draw(key(stream, "noise", channel), counters).numpy().astype("<i8")
    values = words.view(np.uint8).reshape(len(ids_N), num_draws, 8)[:, :, :6].reshape(len(ids_N), -1)[:, :num_pixels]
    return (values.reshape(-1, SIZE, SIZE).astype(np.float32) - 127.5) * (NOISE / 127.5)


def _rotation(t: Array) -> tuple[Array, Array]:
    """Cosine and sine of 2 * atan(t), which need no library function that rounds as it likes."""
    square = t * t
    return (1 - square) / (1 + square), 2 * t / (1 + square)


def _coverage(distance: Array) -> Array:
    """How much of a pixel lies inside, 0 to 1, from the signed distance of its centre to the outline."""
    return np.clip(0.5 - distance * SIZE / 2, 0, 1)


# Signed distances, negative inside, at (u, v) of a shape of radius 1 around the origin; float32 [N, 32, 32].


def _disc(u: Array, v: Array) -> Array:
    return np.sqrt(u * u + v * v) - 1


def _ring(u: Array, v: Array) -> Array:
    return np.abs(np.sqrt(u * u + v * v) - 0.8) - 0.2


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - 0.9


def _triangle(u: Array, v: Array) -> Array:
    return np.maximum(v - 0.7, np.abs(u) * 0.88 - v * 0.47 - 0.47)


def _plus(u: Array, v: Array) -> Array:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.minimum(u, v) - 0.26, np.maximum(u, v) - 1)


def _cross(u: Array, v: Array) -> Array:
    return _plus((u + v) * SQRT_HALF, (u - v) * SQRT_HALF)


def _bars(position: Array) -> Array:
    """Bars across the axis, CELL wide and CELL apart, one of them in the middle."""
    phase = position / (2 * CELL) + 0.5
    return (np.abs(phase - np.floor(phase) - 0.5) - 0.25) * (2 * CELL)


def _horizontal_stripes(u: Array, v: Array) -> Array:
    return np.maximum(_bars(v), _square(u, v))


def _vertical_stripes(u: Array, v: Array) -> Array:
    return _horizontal_stripes(v, u)


def _checkerboard(u: Array, v: Array) -> Array:
    across, along = _bars(u), _bars(v)
    same = np.maximum(np.minimum(across, along), -np.maximum(across, along))
    return np.maximum(-same, _square(u, v))


def _crescent(u: Array, v: Array) -> Array:
    return np.maximum(_disc(u, v), 0.8 - np.sqrt(u * u + (v + 0.5) * (v + 0.5)))


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
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
