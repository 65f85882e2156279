"""trainlib: exact, resumable training of image classifiers. Importing it does not import torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainlib.api import fit
    from trainlib.data import image_dataset
    from trainlib.inference.trained_model import load_model

__all__ = ["fit", "image_dataset", "load_model"]

_HOME = {"fit": "trainlib.api", "image_dataset": "trainlib.data", "load_model": "trainlib.inference.trained_model"}


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
