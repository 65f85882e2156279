"""Time a cold start up to the first step: `launch run`, the same by `accelerate launch`, and the bare minimum."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
LEAST = """
import torch, torchvision
from torch import nn
nn.Sequential(
    nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(2), nn.Conv2d(32, 32, 5, padding=2), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 5, padding=2), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(1024, 64), nn.Linear(64, 10))
print("built", flush=True)
"""
LAUNCH, ACCELERATE, SCRIPT = "launch run", "accelerate launch", "imports and model"


def time_starts(root: str | None, rounds: int, directory: Path) -> dict[str, list[float]]:
    """Return the seconds of each way in each round, in rotating order, after a round that fills caches."""
    data = "{name: synthetic}" if root is None else f"{{name: image_folder, root: {root}}}"
    training = ["cifar10_cnn", "name=start", f"data={data}", "train={steps: 1}", "tracking={log_every: 1}"]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    commands = {
        LAUNCH: [sys.executable, "-m", "launch", "run", *training],
        ACCELERATE: [*accelerate, "--num_machines", "1", "-m", "trainlib.train", *training],
        SCRIPT: [sys.executable, "-c", LEAST],
    }
    directory.mkdir(parents=True)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    names = list(commands)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            elapsed = _built(commands[name]) if name == SCRIPT else _first_step(commands[name], directory)
            if number:
                seconds[name].append(elapsed)
    return seconds


def _built(command: list[str]) -> float:
    """Return the seconds until the model is built; the end of the interpreter does not count."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"built\n"
        return time.perf_counter() - began


def _first_step(command: list[str], directory: Path) -> float:
    """Return the seconds until the row of the first step is in metrics.jsonl."""
    shutil.rmtree(directory / "runs", ignore_errors=True)
    metrics = directory / "runs" / "start" / "metrics.jsonl"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    began = time.perf_counter()
    with (directory / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        while not (metrics.exists() and metrics.read_bytes().count(b"\n")):
            if process.poll() is not None:
                raise RuntimeError(f"{command[2:4]} ended with {process.returncode}: see {directory}/output.txt")
            time.sleep(0.002)
        elapsed = time.perf_counter() - began
        os.killpg(process.pid, signal.SIGKILL)  # what it would go on to do is not of interest
        process.wait()
    return elapsed
