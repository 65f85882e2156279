"""Weights that a source publishes, and what they were trained with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from trainlib.config import Size, sides
from trainlib.models.weights.files import State

Channels = tuple[float, ...]

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000
HALF: Channels = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocessing:
    """The resizing and normalisation that a model's weights were trained with.

    mean, std       of each channel, on a 0..1 scale
    crop_fraction   the share of the shorter side that was cut out after resizing; None where it is not known
    interpolation   of the resizing; None where it is not known
    fit             how a picture of another shape is brought to the model's (see `data.resize.fit`)
    rounds_down     whether a side before the cut of a fraction of a pixel loses it, as timm's does
    """

    mean: Channels
    std: Channels
    crop_fraction: float | None = None
    interpolation: str | None = None
    fit: Literal["crop", "pad", "squash"] = "crop"
    rounds_down: bool = False

    def of_channels(self, channels: int) -> Preprocessing:
        """Return this for images of so many channels: for grey ones with the means of the numbers of the colours."""
        if channels == len(self.mean):
            return self
        mean, std = (sum(values) / len(values) for values in (self.mean, self.std))
        return replace(self, mean=(mean,) * channels, std=(std,) * channels)

    def resized_side(self, image_size: Size) -> int:
        """Return what the shorter side of a picture is scaled to, before an image of this size is cut out."""
        shorter = min(sides(image_size))
        if self.crop_fraction is None:
            return shorter
        side = shorter / self.crop_fraction
        return math.floor(side) if self.rounds_down else round(side)


@dataclass(frozen=True)
class Published:
    """Weights that a source publishes for a model.

    name            the one that config.yaml records, such as `IMAGENET1K_V2`
    preprocessing   what they were trained with
    read            (image size, channels, device) to the state_dict, on the CPU, with the names of the architecture
                    today; downloads what is not there. For the meta device empty tensors, without a download
    facts           where they come from: revision, licence
    """

    name: str
    preprocessing: Preprocessing
    read: Callable[[Size, int, torch.device], State]
    facts: Mapping[str, str] = field(default_factory=dict)
