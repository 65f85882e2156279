"""The schema of `model`: the network, its initial weights, and which of its layers are frozen for how long."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainlib.config.schema.base import Named, Section
from trainlib.config.schema.values import Duration, Freeze


class Unfreeze(Section):
    """An element of `model.unfreeze`: from when on the frozen parameters that match a pattern are trained."""

    match: Annotated[str, Field(min_length=1)]
    at: Duration


class ModelConfig(Named):
    """`model`: the network, its initial weights, and the layers that stay frozen."""

    name: str = "cifar10_cnn"
    weights: str | None = None
    weights_keys: Literal["strict", "shapes"] = "strict"
    head: Literal["replace", "append"] = "replace"
    freeze: Freeze = None
    unfreeze: Annotated[list[Unfreeze], Field(min_length=1)] | None = None
    cache_features: Literal["auto"] | bool = "auto"
    sync_batchnorm: bool = False
    checkpoint_activations: bool = False
