"""Train image classifiers exactly and resumably, from Python: `fit`, `image_dataset`, `load_model`, `Hook` and more.

Importing this package does not import torch: each function is imported when it is first used.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from trainlib.errors import ConfigError, TrainlaunchError, UserError
from trainlib.parts import dataset, loss, metric, model, optimizer, transform
from trainlib.platform.isolation import leave_current_folder

if TYPE_CHECKING:
    from trainlib.api import fit
    from trainlib.data import image_dataset
    from trainlib.inference.trained_model import load_model
    from trainlib.runs.notebook.run import open_run
    from trainlib.training.hooks import Hook

leave_current_folder()

try:
    import fcntl  # noqa: F401 - for locks
except ImportError:
    raise ImportError(
        "trainlaunch runs on Linux and macOS; on Windows, install and use it inside WSL 2", name="fcntl"
    ) from None

__all__ = [
    "ConfigError",
    "Hook",
    "TrainlaunchError",
    "UserError",
    "dataset",
    "fit",
    "image_dataset",
    "load_model",
    "loss",
    "metric",
    "model",
    "open_run",
    "optimizer",
    "transform",
]

_MODULES = {
    "Hook": "trainlib.training.hooks",
    "fit": "trainlib.api",
    "image_dataset": "trainlib.data",
    "load_model": "trainlib.inference.trained_model",
    "open_run": "trainlib.runs.notebook.run",
}


def __getattr__(name: str) -> Any:
    """Import and return a public name that needs torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # of tqdm in a notebook, whose bars nothing here shows
        return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, those included that are not imported yet."""
    return __all__
