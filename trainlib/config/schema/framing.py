"""The sections of `data` that say how pictures become images of the model's size."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainlib.config.schema.base import Section
from trainlib.config.schema.values import ResizeSize

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


class Resize(Section):
    """`data.resize`: how a picture of any size becomes an image of `image_size`, in evaluation."""

    fit: Literal["crop", "pad", "squash"] = "crop"
    size: ResizeSize = "auto"
    interpolation: Literal["auto"] | Interpolation = "auto"


class Crop(Section):
    """`data.augment.crop`: training images are cut at random out of the pictures, as by RandomResizedCrop."""

    scale: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)] = Field([0.08, 1.0])
    ratio: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)] = Field([3 / 4, 4 / 3])
    interpolation: Interpolation = "bilinear"
