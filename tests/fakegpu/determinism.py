"""Strict determinism on the stand-in, whose kernels do nothing here: torch's own checks of operations are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import build_trainer, make_dataset, resolved
from trainings import BASE

from trainlib.distributed import process_group
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.errors import TrainlaunchError, UserError
from trainlib.models import build_model
from trainlib.models.architectures.average_pool import replace_average_pools
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.attempt.stop_request import StopFlag

# Without an evaluation, which looks at numbers.
TRAINING = {**BASE, "data": BASE["data"] | {"val_fraction": 0.0}, "train": {"steps": 2, "batch_size": 8}}
LARGE = {"inception_v3": 299, "maxvit_t": 224}  # those that take no smaller images


def losses(names: list[str], output: str) -> None:
    """Write how a training with each loss ended: ok, or the message of the error."""
    told = {}
    for name in names:
        loss: dict[str, Any] = {"name": name.removesuffix(" weighted")}
        if name.endswith("weighted"):
            loss["weight"] = [1.0] * 10
        config = resolved({**TRAINING, "loss": loss})
        told[name] = _ended(config)
    Path(output).write_text(json.dumps(told))


def optimizers(names: list[str], output: str) -> None:
    """Write how a training with each optimizer ended."""
    told = {}
    for name in names:
        optimizer = {"name": name, "lr": 0.001}
        told[name] = _ended(resolved({**TRAINING, "optimizer": optimizer}))
    Path(output).write_text(json.dumps(told))


def _ended(config: Any) -> str:
    torch.cuda.empty_cache()
    try:
        with process_group.joined(config.train) as accelerator:
            trainer = build_trainer(config, make_dataset(24), accelerator, None)
            assert torch.get_deterministic_debug_mode() == 2
            trainer.run(StopConsensus(StopFlag(), None))
    except TrainlaunchError as error:
        return str(error)
    return "ok"


def classifiers(names: list[str], output: str) -> None:
    """Write which operation of each classifier is not deterministic: ok, or torch's message."""
    train = resolved(BASE).train
    told = {}
    with process_group.joined(train) as accelerator:
        for name in names:
            size = LARGE.get(name, 64)
            config = resolved({"model": {"name": name}, "data": {"name": "synthetic", "image_size": size}})
            with accelerator.device:
                module = build_model(config.model, 10, size).module
            module.to(memory_format=torch.channels_last).train()
            replace_average_pools(module)
            try:
                module(torch.zeros(2, 3, size, size, device=accelerator.device)).sum().backward()
                told[name] = "ok"
            except RuntimeError as error:
                told[name] = str(error).split("\n")[0]
            del module
            torch.cuda.empty_cache()
    Path(output).write_text(json.dumps(told))


class Pooled(torch.nn.Module):
    """A network with a layer whose backward pass on GPUs is not deterministic."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, stride=4),
            torch.nn.AdaptiveMaxPool2d(3),
            torch.nn.Flatten(),
            torch.nn.Linear(36, num_classes),
        )

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(images_NCHW)
        return logits


def refused() -> None:
    """The trial before training refuses it with its name; fast mode takes it."""
    for mode in ("exact", "elastic", "fast"):
        train = {"steps": 2, "batch_size": 8, "reproducibility": mode}
        config = resolved({**BASE, "train": train})
        if mode == "fast":
            with process_group.joined(config.train) as accelerator:
                build_trainer(config, make_dataset(24), accelerator, None, CustomParts(model=Pooled))
            continue
        with (
            pytest.raises(UserError, match=r"adaptive_max_pool2d_backward_cuda has no .*reproducibility=fast"),
            process_group.joined(config.train) as accelerator,
        ):
            build_trainer(config, make_dataset(24), accelerator, None, CustomParts(model=Pooled))
