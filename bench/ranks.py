"""Two processes with one thread each, against one process with two: images a second as summary.json tells them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.startup import REPOSITORY


def time_ranks(root: str | None, steps: int, rounds: int, directory: Path) -> dict[str, list[float]]:
    """Seconds of a step with each number of processes in each round, in alternating order."""
    data = "name: synthetic" if root is None else f"name: image_folder, root: {root}"
    directory.mkdir(parents=True)
    seconds: dict[str, list[float]] = {"1 process": [], "2 processes": []}
    for number in range(rounds):
        for processes in (1, 2) if number % 2 else (2, 1):
            training = [
                "cifar10_cnn",
                f"name=ranks-{processes}-{number}",
                f"data={{{data}, val_fraction: 0}}",
                f"train={{steps: {steps}}}",
                "tracking={wandb: {mode: disabled}}",
            ]
            command = [sys.executable, "-m", "launch", "run", *training, "--processes", str(processes)]
            environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
            with (directory / f"output-{processes}-{number}.txt").open("w") as output:
                subprocess.run(command, cwd=directory, env=environment, stdout=output, stderr=output, check=True)
            summary = json.loads((directory / f"runs/ranks-{processes}-{number}/summary.json").read_text())
            seconds[f"{processes} process{'es' * (processes > 1)}"].append(64 / summary["images_per_second"])
    return seconds
