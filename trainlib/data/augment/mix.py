"""MixUp and CutMix: each sample of a global batch is mixed with the one before it, and so are their labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from trainlib.data.augment.draws import Draws
from trainlib.randomness import key


class Box(NamedTuple):
    """A rectangle of pixels: first column and row, and those behind the last."""

    left: int
    top: int
    right: int
    bottom: int


class Mixture(NamedTuple):
    """How the samples of one global batch are mixed.

    weight   of a sample itself; that of the sample before it is 1 - weight
    box      CutMix: the pixels that come from the sample before it; None: MixUp, each pixel is the weighted mean
    """

    weight: float
    box: Box | None


@dataclass(frozen=True)
class Mixing:
    """MixUp (Zhang et al., 2018) and CutMix (Yun et al., 2019) as functions of (seed, step), as torchvision has them.

    mixup, cutmix   alpha of each one's Beta distribution, 0: off. Where both are on, a step takes one of them, evenly
    """

    seed: int
    mixup: float = 0.0
    cutmix: float = 0.0

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def draw(self, step: int, height: int, width: int) -> Mixture:
        """Return how the samples of this step, counted from 0, are mixed."""
        return _draw(self, step, height, width)


def mix(values_NCHW: Tensor, mixture: Mixture) -> Tensor:
    """Mix N + 1 images, float32, each but the first with the one before it: N images."""
    before, own = values_NCHW[:-1], values_NCHW[1:]
    if mixture.box is None:
        return (before * (1 - mixture.weight)).add_(own * mixture.weight)
    left, top, right, bottom = mixture.box
    mixed = own.clone()
    mixed[..., top:bottom, left:right] = before[..., top:bottom, left:right]
    return mixed


@lru_cache(maxsize=16)  # for the micro-batches of a step
def _draw(mixing: Mixing, step: int, height: int, width: int) -> Mixture:
    """Draw as `Mixing.draw` says. The weight has 16 binary digits.

    So the last bits of a machine's logarithms and cosines, which the Beta distribution takes, do not matter.
    """
    draws = Draws(key("mix", mixing.seed), torch.tensor([step]))
    both = mixing.mixup > 0 and mixing.cutmix > 0
    is_cutmix = draws.integers("which", 1, 2).item() == 1 if both else mixing.cutmix > 0
    share = draws.dirichlet("weight", 1, 2, mixing.cutmix if is_cutmix else mixing.mixup)[0, 0, 0].item()
    weight = round(share * 2**16) / 2**16
    if not is_cutmix:
        return Mixture(weight, None)
    column, row = draws.integers("column", 1, width).item(), draws.integers("row", 1, height).item()
    box = _box(weight, int(column), int(row), height, width)
    return Mixture(1 - (box.right - box.left) * (box.bottom - box.top) / (width * height), box)


def _box(weight: float, column: int, row: int, height: int, width: int) -> Box:
    """Return the box about a pixel whose part of the image is 1 - weight, cut off at the image's border."""
    half = 0.5 * math.sqrt(1 - weight)
    half_width, half_height = int(half * width), int(half * height)
    return Box(
        max(column - half_width, 0),
        max(row - half_height, 0),
        min(column + half_width, width),
        min(row + half_height, height),
    )
