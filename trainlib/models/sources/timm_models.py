"""Models of timm, by `timm/NAME` or `hf-hub:ORGANISATION/NAME`, with the weights that are published for them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from trainlib.config import ModelConfig, Size, sides
from trainlib.config.libraries.catalog import PRETRAINED
from trainlib.config.libraries.timm_models import PREFIX
from trainlib.errors import UserError, WeightsError
from trainlib.models.architectures.empty import empty_init
from trainlib.models.sources.published import Preprocessing, Published
from trainlib.models.weights.files import State

_FITS: dict[str, Literal["crop", "pad", "squash"]] = {"center": "crop", "border": "pad", "squash": "squash"}


def build(config: ModelConfig, image_size: Size, channels: int, *, pretrained: bool = False) -> nn.Module:
    """Build a model as it is published, for images of this size and number of channels.

    pretrained   load the published weights too, downloaded where they are not in the cache of Hugging Face

    Raises UserError for a name, tag or argument that timm refuses.
    """
    import timm

    try:
        module: nn.Module = timm.create_model(pretrained=pretrained, **_arguments(config, image_size, channels))
    except RuntimeError as error:
        if pretrained:
            raise
        raise UserError(f"model.name: {config.name}: {_reason(error)}") from error
    return module


def _arguments(config: ModelConfig, image_size: Size, channels: int) -> dict[str, Any]:
    """Return what timm.create_model takes: an image size only where the architecture depends on it."""
    from timm.models import resolve_model_input_args

    name = config.name.removeprefix(PREFIX)
    try:
        found: dict[str, Any] = resolve_model_input_args(
            name, {"img_size": sides(image_size)}, in_chans=channels, **config.args
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"model.name: {config.name}: {_reason(error)}. timm must know the name, and what is on Hugging Face's hub "
            "must be in its cache (HF_HOME) where there is no internet"
        ) from error
    return found


def published(config: ModelConfig) -> Published | None:
    """Return the published weights of a model, which `model.weights: pretrained` means; None for any other value."""
    if config.weights != PRETRAINED:
        return None
    facts: dict[str, Any] = _arguments(config, 224, 3)["pretrained_cfg"]
    if not any(facts.get(key) for key in ("url", "hf_hub_id", "file")):
        raise WeightsError(f"model.weights: no weights of {config.name} are published: choose a file, or null")

    def read(image_size: Size, channels: int, device: torch.device) -> State:
        if device.type == "meta":
            with empty_init():
                return dict(build(config, image_size, channels).state_dict())
        try:
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):
                return dict(build(config, image_size, channels, pretrained=True).state_dict())
        except (OSError, RuntimeError) as error:
            place = kept.get("hf_hub_id") or kept.get("url") or str(facts.get("file"))
            raise WeightsError(
                f"model.weights: those of {config.name}, at {place}, could not be loaded ({_reason(error)}). Load them "
                "once where there is internet, by timm.create_model(..., pretrained=True) with the same HF_HOME, or "
                "give a path"
            ) from error

    kept = {key: str(facts[key]) for key in ("hf_hub_id", "url", "tag", "license") if facts.get(key)}
    return Published(PRETRAINED, published_preprocessing(config), read, kept)


def published_preprocessing(config: ModelConfig) -> Preprocessing:
    """Return how a model's pictures were resized and normalised, as timm records it."""
    facts = _arguments(config, 224, 3)["pretrained_cfg"]
    return Preprocessing(
        tuple(facts["mean"]),
        tuple(facts["std"]),
        float(facts["crop_pct"]),
        str(facts["interpolation"]),
        _FITS.get(facts.get("crop_mode") or "center", "crop"),
        rounds_down=True,
    )


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")


def last_layers_of(module: nn.Module) -> tuple[str, ...] | None:
    """Return the names of a timm model's last layers, of which distilled ones have two; None for any other model."""
    named = getattr(module, "pretrained_cfg", {}).get("classifier")
    return (named,) if isinstance(named, str) else named and tuple(named)
