"""A training that is over in a second and still has all that a resumed one must get right.

Dropout and augmentation are on, and AdamW, a cosine schedule, clipping, validation and a best checkpoint are in it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from paths import REPOSITORY
from PIL import Image

from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import read_lines
from trainlib.runs.records.checkpoints import steps_in
from trainlib.runs.records.rows import BY_THE_CLOCK

STEPS_PER_EPOCH = 4


def make_images(root: Path) -> None:
    """A folder of noise in two classes: 60 images for training, 12 of them for validation, and 10 for the test."""
    generator = np.random.default_rng(5)
    for split, count in (("train", 30), ("test", 5)):
        for name in ("a", "b"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:02d}.png")


def arguments(images: Path, epochs: int, every: int, *more: str) -> list[str]:
    """What to train: four steps an epoch, a row for each, a checkpoint every `every` steps."""
    return [
        "vgg16_scratch32",
        "name=run",
        f"data={{name: image_folder, root: {images}, val_fraction: 0.2, augment: {{flip: true, crop_padding: 4}}}}",
        "model={name: vgg16, width: 0.03, dropout: 0.5}",
        "optimizer={name: AdamW, lr: 1e-3}",
        "scheduler={name: CosineAnnealingLR, interval: step}",
        f"train={{epochs: {epochs}, batch_size: 12, clip_grad_norm: 1.0}}",
        f"checkpoint={{every: {every}st, keep: 2, best: {{metric: val/loss, mode: min}}}}",
        "tracking={log_every: 1, tensorboard: false}",
        *more,
    ]


def rows(cwd: Path, *, name: str = "run") -> list[dict[str, Any]]:
    """What metrics.jsonl says, but for what the clock decides."""
    lines = read_lines(cwd / "runs" / name / "metrics.jsonl")
    return [{key: line[key] for key in line if key not in BY_THE_CLOCK} for line in lines]


def summary(cwd: Path, *, name: str = "run") -> dict[str, Any]:
    return RunDirectory(cwd / "runs" / name).summary()


def digest(cwd: Path, *, name: str = "run") -> str:
    """The SHA-256 of the weights that the run ended with."""
    return str(summary(cwd, name=name)["weights_sha256"])


def assert_same_result(cwd: Path, whole: Path, *, best_is_lost: bool = False) -> None:
    """The run in `cwd` is complete, and the same in every bit as the one in `whole`, which nothing disturbed.

    best_is_lost   the best checkpoint could not be written, so the last weights were tested
    """
    assert summary(cwd)["status"] == "completed"
    for name in ("weights_sha256", "best", *([] if best_is_lost else ["test"])):
        assert summary(cwd)[name] == summary(whole)[name], name
    ours, expected = rows(cwd), rows(whole)
    assert [row["split"] for row in ours] == [row["split"] for row in expected]
    different = [pair for pair in zip(ours, expected, strict=True) if pair[0] != pair[1]]
    assert ours[:-1] == expected[:-1], different
    assert best_is_lost or ours == expected, different


def attempts(cwd: Path, event: str) -> list[dict[str, Any]]:
    """The lines of attempts.jsonl of this kind: `start` or `end`."""
    return [line for line in read_lines(cwd / "runs/run/attempts.jsonl") if line["event"] == event]


def in_folder(parent: Path, name: str) -> Path:
    """A new working directory for a run."""
    cwd = parent / name
    cwd.mkdir()
    return cwd


def last_step(cwd: Path) -> int:
    """The step of the newest row that is whole; 0 where there is none."""
    try:
        lines = (cwd / "runs/run/metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return int(json.loads(lines[-1])["step"]) if lines else 0


class Moment:
    """A random moment of the attempt that is about to begin: while starting, training, evaluating or saving."""

    def __init__(self, cwd: Path, every: int, choice: random.Random):
        self._cwd, self._choice = cwd, choice
        self._metrics = cwd / "runs/run/metrics.jsonl"
        self._before = self._inode()  # the attempt replaces the file before its first row
        from_step = max(steps_in(cwd / "runs/run/checkpoints"), default=0)
        self._until = from_step + choice.randint(1, 2 * every)

    def wait(self, running: Callable[[], bool]) -> None:
        """Until some steps after the attempt's first, or for some time if that is over sooner."""
        deadline = time.monotonic() + self._choice.uniform(0.0, 10.0 if self._choice.random() < 0.7 else 1.0)
        while running() and time.monotonic() < deadline:
            if self._inode() != self._before and last_step(self._cwd) >= self._until:
                break
            time.sleep(0.002)
        time.sleep(self._choice.uniform(0.0, 0.03))

    def _inode(self) -> int | None:
        return self._metrics.stat().st_ino if self._metrics.exists() else None


def launch(training: list[str], cwd: Path, processes: int = 2) -> subprocess.Popen[bytes]:
    """`launch run` with so many processes, begun; what it says goes to `cwd/console.txt`. It starts nothing again."""
    repository = REPOSITORY
    environment = os.environ | {"PYTHONPATH": str(repository), "CUDA_VISIBLE_DEVICES": ""}
    with (cwd / "console.txt").open("wb") as console:
        command = [sys.executable, "-m", "launch", "run", *training, "--processes", str(processes)]
        command += ["--restarts", "0"]
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=console, stderr=console)
