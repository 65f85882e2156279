"""Names of timm's models (`timm/resnet50.a1_in1k`), read from its source text without importing it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from functools import cache

from trainlib.config.libraries.signatures import library

PREFIX, HUB = "timm/", "hf-hub:"

# Arguments of timm.create_model that are keys of the configuration here.
OUR_KEYS: Mapping[str, str] = {
    "pretrained": "model.weights=pretrained",
    "checkpoint_path": "model.weights=PATH",
    "in_chans": "data.channels=N",
    "img_size": "data.image_size=N",
}

_REGISTERED = re.compile(r"^@register_model\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_RENAMED = re.compile(r"register_model_deprecations\(__name__, \{(.*?)\n\}\)", re.DOTALL)


def is_from_timm(name: object) -> bool:
    """Return True if a model's name means one that timm builds."""
    return isinstance(name, str) and name.startswith((PREFIX, HUB))


def packages_of(model: str) -> tuple[str, ...]:
    """Return the packages, beside those of every training, whose code decides what a model computes."""
    return ("timm",) if is_from_timm(model) else ()


def is_installed() -> bool:
    """Return True if timm can be imported."""
    return importlib.util.find_spec("timm") is not None


@cache
def architectures() -> frozenset[str]:
    """Return the names of timm's architectures, older ones that it still knows included."""
    found: set[str] = set()
    for file in sorted((library("timm") / "models").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        found.update(_REGISTERED.findall(text))
        for renamed in _RENAMED.findall(text):
            found.update(re.findall(r"^\s+'([\w.]+)':", renamed, re.MULTILINE))
    return frozenset(found)


def architecture(name: str) -> str:
    """Return the architecture in a name `timm/ARCHITECTURE.TAG`."""
    return name.removeprefix(PREFIX).partition(".")[0]
