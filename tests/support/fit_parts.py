"""A model, arrays and losses of a user's own, and `trainlib.fit` with them."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

import trainlib
from trainlib.data import Dataset
from trainlib.runs.directory import RunDirectory


class Net(nn.Module):
    """Dropout in it, so that a resumed run is the same only where its generators are."""

    def __init__(self, num_classes: int, width: int = 8, dropout: float = 0.5):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Linear(width * 49, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


class OtherNet(Net):
    """The same weights under another name."""


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each sample."""
    return (logits.softmax(1) - nn.functional.one_hot(labels, logits.shape[1])).square().sum(1)


def squared_mean(logits: Tensor, labels: Tensor) -> Tensor:
    return squared(logits, labels).mean()


def arrays(seed: int = 0, count: int = 100) -> Any:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return images, generator.integers(0, 3, count)


def dataset(seed: int = 0) -> Dataset:
    return trainlib.image_dataset(arrays(seed), arrays(100, 30), classes=["a", "b", "c"])


CONFIG: dict[str, Any] = {
    "name": "own",
    "data": {"augment": {"flip": True, "crop_padding": 2}},
    "optimizer": {"name": "AdamW", "lr": 1e-3},
    "train": {"epochs": 2, "batch_size": 16},
    "checkpoint": {"every": "3st"},
    "tracking": {"wandb": {"mode": "disabled"}, "tensorboard": False, "progress": False, "log_every": 1},
}


def fit(*config: Any, **parts: Any) -> RunDirectory:
    """A run `own` of 12 steps whose model, data set and loss are given."""
    given: dict[str, Any] = {"model": Net, "dataset": dataset(), "loss": squared}
    return trainlib.fit(CONFIG, *config, **given | parts)
