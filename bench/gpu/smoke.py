"""Whole trainings by `launch run`: one in fp16, and one that is killed, goes on by itself and is then trained again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

LAUNCH = (sys.executable, "-m", "launch")
SETTINGS = ("cifar10_cnn", "tracking={wandb: {mode: disabled}, tensorboard: false}", "data.name=synthetic")
EPOCHS = 20  # of the run that is killed after its first checkpoint


def smoke_tests(folder: Path, *, gpu: bool) -> Iterator[tuple[str, bool]]:
    """Yield what was tried, and whether it went as it should; what the commands print is in `folder`."""
    folder.mkdir()
    if gpu:
        yield "a training in fp16", _call(folder, ["run", *SETTINGS, "name=fp16", "train.precision=fp16"]) == 0
    small = ["train.device=cpu", "data.limit=400", "train.epochs=3"]
    yield "a training that is killed goes on", _killed(folder, [f"train.epochs={EPOCHS}"] if gpu else small)
    yield "trained again, it has the same bits", _call(folder, ["verify", "killed", "--whole"]) == 0


def _killed(folder: Path, more: Sequence[str]) -> bool:
    """Kill the process that trains after its first checkpoint; return True if the run came to its end all the same."""
    run = folder / "runs" / "killed"
    words = [*LAUNCH, "run", *SETTINGS, *more, "name=killed", "checkpoint.every=1ep"]
    with (folder / "killed.txt").open("w") as output:
        with subprocess.Popen(words, cwd=folder, stdout=output, stderr=output) as launcher:
            while launcher.poll() is None and not any((run / "checkpoints").glob("step-*")):
                time.sleep(0.01)
            for child in psutil.Process(launcher.pid).children() if launcher.poll() is None else ():
                child.kill()
        events = [json.loads(line)["event"] for line in (run / "attempts.jsonl").read_text().splitlines()]
    return launcher.returncode == 0 and events.count("start") > 1


def _call(folder: Path, words: Sequence[str]) -> int:
    with (folder / f"{words[0]}.txt").open("a") as output:
        return subprocess.run([*LAUNCH, *words], cwd=folder, stdout=output, stderr=output, check=False).returncode
