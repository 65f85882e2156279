"""A small run whose weights several tests use, and the same network written out in plain torch as their oracle."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from parts import tutorial_cnn
from torch import Tensor, nn

from trainlib.data.datasets.dataset import ImageSet
from trainlib.data.sources.arrays.synthetic import make_synthetic

# Two epochs of eight steps on drawings of ten shapes, and a checkpoint after each: it learns something, and errs a lot.
TRAINING = [
    "quickstart",
    "name=run",
    "data.limit=512",
    "optimizer={name: AdamW, lr: 2e-3}",
    "scheduler=null",
    "train={epochs: 2, batch_size: 64}",
    "checkpoint={every: 8st, keep: 3}",
    "tracking={tensorboard: false, progress: false, wandb: {mode: disabled}}",
]
CLASSES = 10
IN_PLAIN_NETWORK = {"features.0": "0", "features.2": "2", "features.4": "4", "classifier.0": "7", "classifier.1": "8"}


def checkpoint_of(cwd: Path, step: int = 16) -> Path:
    return cwd / "runs/run/checkpoints" / f"step-{step:08d}"


def manifest_of(checkpoint: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((checkpoint / "manifest.json").read_text())
    return manifest


def plain_network(checkpoint: Path) -> nn.Module:
    """The checkpoint's weights in a network that this project's code did not build."""
    state = safetensors.torch.load_file(checkpoint / "model.safetensors")
    network = tutorial_cnn(CLASSES)
    renamed = {name: name.rpartition(".") for name in state}
    network.load_state_dict({f"{IN_PLAIN_NETWORK[head]}.{tail}": state[n] for n, (head, _, tail) in renamed.items()})
    return network.eval()


def plain_logits(checkpoint: Path, images_NCHW: Tensor) -> Tensor:
    """float32 [N, 10] of uint8 images, with the mean and standard deviation that the manifest names."""
    values = manifest_of(checkpoint)["preprocess"]
    mean, std = (torch.tensor(values[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits: Tensor = plain_network(checkpoint)((images_NCHW / 255 - mean) / std)
    return logits


@functools.cache
def drawings() -> ImageSet:
    """The run's test split, 2,000 images; they are the same beside however many training images."""
    return make_synthetic(num_train=10).test


def pixels(image_set: ImageSet) -> Tensor:
    """All images of a set, uint8 [N, 3, H, W]."""
    return next(image_set.images.batches([torch.arange(len(image_set.labels_N))]))
