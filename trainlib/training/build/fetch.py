"""Fetching what a job would download, before it is queued: machines that compute often have no internet."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from trainlib.config import Config, ModelConfig, is_custom, sides
from trainlib.data.sources.arrays.cifar10 import load_cifar10
from trainlib.models.sources.registry import published_weights


def fetch_downloads(config: Config, *, with_weights: bool) -> None:
    """Read published weights and CIFAR-10, which downloads those that are not on this machine yet; say where they are.

    with_weights   False for a run that goes on from a checkpoint, for which none are read

    Raises WeightsError or DataError, with the address and the way out, for what cannot be downloaded.
    """
    if config.data.name == "cifar10":
        _fetch_cifar10(config.data.root)
    model = config.model
    if with_weights and model.weights is not None and not is_custom(model.name):
        _fetch_weights(model.model_dump_json(), sides(config.data.image_size), config.data.channels)


@cache  # a sweep has many runs with the same
def _fetch_cifar10(root: str) -> None:
    load_cifar10(Path(root), stop_requested=lambda: False)
    print(f"data: CIFAR-10 is in {root}, and the job downloads nothing")


@cache
def _fetch_weights(model_json: str, height_width: tuple[int, int], channels: int) -> None:
    model = ModelConfig.model_validate_json(model_json)
    found = published_weights(model)
    if found is not None:
        found.read(list(height_width), channels, torch.device("cpu"))
        print(f"model.weights: {found.name} of {model.name} is on this machine, and the job downloads nothing")
