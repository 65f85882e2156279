"""Measure how long a checkpoint keeps the training loop waiting, beside a plain torch.save of the same state.

    python bench/checkpoint_cost.py [--saves 3] [--directory DIR] [--device cpu]

For the tutorial CNN and for VGG16 (134 million parameters for ten classes), with SGD and momentum. Three ways:

    torch.save            model and optimizer state_dict in one file, not flushed to disk, nothing verified
    checkpoint            what training does: two files, hashed while written, flushed to disk, renamed, old ones pruned
    checkpoint, writer    the same in the background: the loop waits only for the copy to host memory

Each time is the median of several saves, with a pause between two that is longer than a save, as
a second save waits for the writer of the first.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainlib.config import ModelConfig
from trainlib.models import build_model
from trainlib.training.checkpoints.manager import CheckpointManager


def trained_for_a_step(name: str, device: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model and its optimizer after one step, so that there is momentum; the gradients are all 1."""
    module = build_model(ModelConfig(name=name), num_classes=10, image_size=32).module.to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return module, optimizer


def blocked_seconds(save: Callable[[int], None], saves: int, pause: float) -> float:
    """Return the median seconds that a call takes, after one call that does not count."""
    times = []
    for step in range(saves + 1):
        began = time.perf_counter()
        save(step)
        times.append(time.perf_counter() - began)
        time.sleep(pause)
    return statistics.median(times[1:])


def measure(name: str, directory: Path, saves: int, device: str, pause: float) -> None:
    module, optimizer = trained_for_a_step(name, device)
    model_state: dict[str, Tensor] = module.state_dict()

    def trainer_state() -> dict[str, Any]:
        return {"optimizer": optimizer.state_dict()}

    def plain(step: int) -> None:
        torch.save({"model": model_state, **trainer_state()}, directory / "plain.pt")

    managers = {
        "checkpoint": CheckpointManager(directory / "foreground", keep=2, facts={}),
        "checkpoint, writer": CheckpointManager(directory / "background", keep=2, facts={}, background=True),
    }
    seconds = {"torch.save": blocked_seconds(plain, saves, pause)}
    megabytes = (directory / "plain.pt").stat().st_size / 1e6
    (directory / "plain.pt").unlink()
    for way, manager in managers.items():
        folder = directory / ("background" if "writer" in way else "foreground")
        folder.mkdir()
        seconds[way] = blocked_seconds(
            lambda step: manager.save(step, model_state, trainer_state(), {}),  # noqa: B023
            saves,
            pause,
        )
        assert manager.problem(must_have=saves) is None
        manager.close()
        shutil.rmtree(folder)
    for way, value in seconds.items():
        print(f"{name:<12} {megabytes:8.1f} MB   {way:<20} {value * 1e3:9.1f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a checkpoint keeps the training loop waiting.")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where to write; by default a temporary directory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pause", type=float, default=20.0, help="seconds between two saves of VGG16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        measure("cifar10_cnn", Path(directory), 20, options.device, pause=0.1)
        measure("vgg16", Path(directory), options.saves, options.device, options.pause)


if __name__ == "__main__":
    main()
