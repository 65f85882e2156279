"""Small parts that several tests build a training from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from trainlib.config import Config
from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.data.datasets.images import InMemoryImages
from trainlib.models.own_parts.custom_parts import NO_CUSTOM_PARTS, CustomParts
from trainlib.runs.records.rows import BY_THE_CLOCK
from trainlib.training.build.training import build_inputs, build_training
from trainlib.training.checkpoints.checkpoint import Checkpoint
from trainlib.training.hooks import Hook
from trainlib.training.trainer import Trainer
from trainlib.training.tuning.feature_cache import Features, TrainingInputs


def make_dataset(num_train: int, num_test: int = 20, *, num_classes: int = 10, size: int = 32) -> Dataset:
    """Random images of random classes."""
    generator = torch.Generator().manual_seed(7)

    def images(n: int) -> ImageSet:
        pixels = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
        return ImageSet(InMemoryImages(pixels), torch.randint(0, num_classes, (n,), generator=generator))

    names = tuple(f"class {index}" for index in range(num_classes))
    return Dataset(images(num_train), images(num_test), names, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Rows(list[dict[str, Any]]):
    """A tracker that keeps the rows."""

    def log(self, row: Mapping[str, Any]) -> None:
        self.append(dict(row))

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        """Nothing to close."""

    def without_times(self) -> list[dict[str, Any]]:
        """The rows but for what the clock decides."""
        return [{key: row[key] for key in row if key not in BY_THE_CLOCK} for row in self]


def resolved(config: Mapping[str, Any]) -> Config:
    """A configuration from a mapping, resolved as one from a file is."""
    import yaml

    from trainlib.config import load_config

    arguments = [f"{key}={yaml.safe_dump(value, default_flow_style=True).strip()}" for key, value in config.items()]
    return load_config(["quickstart", *arguments])


def tutorial_cnn(num_classes: int = 10) -> nn.Sequential:
    """The tutorial CNN, written out again: the oracle must not be built by the code under test."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.Linear(64, num_classes),
    )


def build_trainer(
    config: Config,
    dataset: Dataset,
    accelerator: Accelerator,
    start: Checkpoint | None = None,
    custom: CustomParts = NO_CUSTOM_PARTS,
    caching: Callable[[TrainingInputs], Features | None] = lambda inputs: None,
    hooks: Sequence[Hook] = (),
) -> Trainer:
    """A trainer as a session makes it, without a run directory. A collective."""
    inputs = build_inputs(config, dataset, accelerator, start, custom)
    return Trainer(build_training(inputs, start, custom, caching(inputs)), hooks)
