"""Torchvision's classifiers, and the weights that it publishes for them."""

from __future__ import annotations

import http.client
import sys
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import torch
from torch import nn

from trainlib.config import ModelConfig, Size, sides
from trainlib.config.libraries.catalog import PRETRAINED
from trainlib.errors import UserError, WeightsError
from trainlib.models.architectures.empty import empty_init
from trainlib.models.sources.published import Preprocessing, Published
from trainlib.models.weights.files import State, canonical, read_state

# These have auxiliary heads, and inputs that their published weights expect normalised differently.
INCEPTIONS = ("googlenet", "inception_v3")


def torchvision_model(name: str, image_size: Size, args: dict[str, Any], *, published_weights: bool) -> nn.Module:
    """Build a torchvision classifier by name: 1000 classes, and the image size where the architecture depends on it."""
    kwargs, (height, width) = dict(args), sides(image_size)
    if name.startswith("vit_"):
        if height != width:
            raise ValueError("takes square images alone: choose one number, or another model")
        kwargs["image_size"] = height
    elif name.startswith("maxvit") and (height, width) != (224, 224) and not published_weights:
        kwargs["input_size"] = (height, width)
    elif name in INCEPTIONS:
        kwargs |= {"aux_logits": False, "init_weights": True}
        if published_weights:
            kwargs.setdefault("transform_input", True)
    return cast(nn.Module, _models().get_model_builder(name)(**kwargs))


def names_of_weights(model: str) -> dict[str, Enum]:
    """Return the published weights of a model by name."""
    return dict(_models().get_model_weights(model).__members__)


def _models() -> Any:
    """Return torchvision.models. Raises UserError for a torchvision that was built for another torch."""
    try:
        return import_module("torchvision.models")
    except RuntimeError as error:
        raise UserError(
            f"torchvision does not load beside torch {torch.__version__} ({error}): install both from the same index, "
            "see docs/install.md"
        ) from error


def published(config: ModelConfig) -> Published | None:
    """Return the weights that `model.weights` names; None if it is not the name of any."""
    members = names_of_weights(config.name)
    member = members.get("DEFAULT" if config.weights == PRETRAINED else str(config.weights))
    if member is None:
        return None
    transform = member.value.transforms()
    [crop], [resized] = transform.crop_size, transform.resize_size
    mean, std = tuple(transform.mean), tuple(transform.std)
    preprocessing = Preprocessing(mean, std, crop / resized, transform.interpolation.value)

    def read(image_size: Size, channels: int, device: torch.device) -> State:
        if device.type == "meta":
            with empty_init():
                size = min(member.value.meta["min_size"])
                state: State = torchvision_model(config.name, size, {}, published_weights=True).state_dict()
            return state
        with torch.device("cpu"):
            state = read_state(_download(config.name, member))
            return canonical(state, auxiliary=config.name not in INCEPTIONS)

    facts = {"url": str(member.value.url), "recipe": str(member.value.meta.get("recipe", ""))}
    return Published(member.name, preprocessing, read, facts)


def _download(model: str, member: Enum) -> Path:
    """Return the published file in torch's cache folder; download it if it is not there."""
    url = member.value.url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(url).path).name
    if not path.is_file():
        checksum = torch.hub.HASH_REGEX.search(path.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            prefix = checksum.group(1) if checksum else None
            torch.hub.download_url_to_file(url, str(path), prefix, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise WeightsError(
                f"model.weights: {member.name} of {model} could not be downloaded ({error}). Place the file "
                f"{path.name}, from {url}, in {folder}, or give the path of a file instead of the name"
            ) from error
    return path
