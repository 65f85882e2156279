"""The schema of `data.augment`, the random changes of training images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainlib.config.schema.base import Section
from trainlib.config.schema.framing import Crop
from trainlib.config.schema.values import Flip, PolicyName


class PolicyConfig(Section):
    """`data.augment.policy` with arguments; which of them a policy takes is in `POLICY_ARGUMENTS`."""

    name: PolicyName
    num_ops: Annotated[int, Field(ge=1)] | None = None
    magnitude: Annotated[int, Field(ge=0, le=30)] | None = None
    policy: Literal["imagenet", "cifar10", "svhn"] | None = None
    severity: Annotated[int, Field(ge=1, le=10)] | None = None
    mixture_width: Annotated[int, Field(ge=1)] | None = None
    alpha: Annotated[float, Field(gt=0)] | None = None


class ColorJitterConfig(Section):
    """`data.augment.color_jitter`: how far brightness, contrast, saturation and hue may change."""

    brightness: Annotated[float, Field(ge=0)] = 0.0
    contrast: Annotated[float, Field(ge=0)] = 0.0
    saturation: Annotated[float, Field(ge=0)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Augment(Section):
    """`data.augment`: random changes of training images."""

    crop: Crop | None = None
    flip: Flip = False
    crop_padding: Annotated[int, Field(ge=0)] = 0
    fill: Literal["black", "reflect"] = "black"
    vertical_flip: bool = False
    policy: PolicyName | PolicyConfig | None = None
    color_jitter: ColorJitterConfig | None = None
    custom: str | None = None
    erase: Annotated[float, Field(ge=0, le=1)] = 0.0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0
