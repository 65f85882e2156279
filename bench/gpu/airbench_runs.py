"""airbench (github.com/KellerJordan/cifar10-airbench) and our fast recipe, on the same pictures, one after the other.

Seconds are what airbench's own clock counts: training and the last evaluation, neither imports and compilation, nor
the loading of the data, nor what is evaluated on the way. Ours are of the same: from the rows of a run.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from trainlib.config import load_config
from trainlib.data import load_data
from trainlib.data.datasets.dataset import ImageSet

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPT = "airbench94_muon.py"  # of a clone
PACKAGE_EPOCHS = 9.9  # of airbench.train94
PACKAGE_BATCH_SIZE = 1024

_PACKAGE = "import sys, airbench; airbench.warmup94(); [airbench.train94(run=run) for run in range(int(sys.argv[1]))]"
_PACKAGE_COLD = "import airbench, torch; torch.save(airbench.train94().state_dict(), 'model.pt')"
_SCRIPT_COLD = """
import sys
sys.path.insert(0, sys.argv[1])
sys.argv = [sys.argv[1] + "/airbench94_muon.py"]
import torch, airbench94_muon
model = airbench94_muon.CifarNet().cuda().to(memory_format=torch.channels_last)
model.compile(mode="max-autotune")
airbench94_muon.main(0, model)
torch.save(model.state_dict(), "model.pt")
"""
_OURS = """
import sys, trainlib
for run in range(int(sys.argv[1])):
    trainlib.fit(*sys.argv[2:], f"name=fast-{run}", f"seed={run}")
"""
_NETWORK = """
import sys, airbench, trainlib
trainlib.fit(*sys.argv[1:], "name=network", model=lambda classes: airbench.make_net94().float().cpu())
"""


class Run(NamedTuple):
    """The result of one run.

    seconds            training and the last evaluation
    training_seconds   training alone
    """

    accuracy: float
    seconds: float
    training_seconds: float


def write_tensors(root: str, folder: Path) -> int:
    """Write class folders as airbench reads them, cifar10/train.pt and test.pt; return how many images train."""
    dataset = load_data(load_config(["cifar10_cnn", *_data(root)]).data)
    (folder / "cifar10").mkdir(parents=True)
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        facts = {"images": _pixels(split).permute(0, 2, 3, 1).contiguous(), "labels": split.labels_N}
        torch.save(facts | {"classes": list(dataset.class_names)}, folder / "cifar10" / f"{name}.pt")
    return len(dataset.train.labels_N)


def package_runs(folder: Path, runs: int) -> list[Run]:
    """Run airbench94 of the package so often, in one process after a warm-up."""
    return _printed([sys.executable, "-c", _PACKAGE, str(runs)], folder, runs)


def script_runs(clone: Path, folder: Path, runs: int) -> list[Run]:
    """Start the clone's script as it is, and end it after so many runs."""
    return _printed([sys.executable, str(clone / SCRIPT)], folder, runs)


def our_runs(config: str, root: str, folder: Path, runs: int) -> list[Run]:
    """Run our recipe so often, in one process after a warm-up, as airbench does."""
    _call([sys.executable, "-c", _OURS, str(runs + 1), config, *_data(root)], folder)
    return [run_of(folder / "runs" / f"fast-{number}") for number in range(1, runs + 1)]


def run_of(run: Path) -> Run:
    """Return a finished run of ours; the throughput in its rows excludes evaluations and checkpoints."""
    summary, rows = json.loads((run / "summary.json").read_text()), _rows(run)
    trained = sum(row["count"] for row in rows if row.get("scope") == "epoch")
    training = trained / summary["images_per_second"]
    [test] = [row for row in rows if row["split"] == "test"]
    return Run(summary["test"]["accuracy"], training + test["count"] / test["images_per_second"], training)


def network_speed(root: str, folder: Path, batch_size: int) -> list[float]:
    """Return images a second of airbench's network in our training, for each epoch after the first."""
    settings = [
        "data.val_fraction=0",
        "data.drop_last=true",
        "data.augment={flip: true, crop_padding: 2}",
        "loss={name: CrossEntropyLoss, label_smoothing: 0.2}",
        "optimizer={name: SGD, lr: 0.01, momentum: 0.85, nesterov: true}",
        "scheduler=null",
        f"train={{epochs: 10, batch_size: {batch_size}, precision: bf16, reproducibility: fast}}",
        "checkpoint.every=10ep",
    ]
    _call([sys.executable, "-c", _NETWORK, "cifar10_cnn", *_data(root), *settings], folder)
    rows = [row for row in _rows(folder / "runs" / "network") if row.get("scope") == "epoch"]
    return [row["images_per_second"] for row in rows[1:]]


def package_speed(runs: Sequence[Run], num_images: int) -> list[float]:
    """Return images a second of the package's own loop, for each run."""
    steps = math.ceil(max(1, num_images // PACKAGE_BATCH_SIZE) * PACKAGE_EPOCHS)
    return [steps * PACKAGE_BATCH_SIZE / run.training_seconds for run in runs]


def cold_seconds(config: str, root: str, folder: Path, clone: Path | None, repeats: int) -> dict[str, float]:
    """Return the median seconds from a process's start to a trained model on disk, with nothing compiled before."""
    commands = {
        "ours": [sys.executable, "-m", "launch", "run", config, *_data(root), "--fresh", "--name", "cold"],
        "airbench94": [sys.executable, "-c", _PACKAGE_COLD],
    }
    if clone:
        commands["airbench94_muon"] = [sys.executable, "-c", _SCRIPT_COLD, str(clone)]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as cache:
                began = time.perf_counter()
                _call(command, folder, TORCHINDUCTOR_CACHE_DIR=f"{cache}/inductor", TRITON_CACHE_DIR=f"{cache}/triton")
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def parse_runs(lines: Iterable[str]) -> Iterator[Run]:
    """Yield the runs in airbench's printed table, as it comes; a warm-up is left out."""
    run, training = "", 0.0
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 6 or cells[1] == "epoch":
            continue
        run = cells[0] or run  # printed once for each run
        if cells[1] != "eval":
            training = float(cells[-1])
        elif run != "warmup":
            yield Run(float(cells[-2]), float(cells[-1]), training)


def _printed(command: list[str], folder: Path, runs: int) -> list[Run]:
    """Start a command, return the first runs that it prints, and end it."""
    found: list[Run] = []
    with (folder / "errors.txt").open("a") as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, stderr=errors, text=True
        )
        assert process.stdout is not None
        for run in parse_runs(process.stdout):
            found.append(run)
            if len(found) == runs:
                break
        process.kill()
        process.wait()
    if len(found) < runs:
        raise RuntimeError(f"{command[1:3]} made {len(found)} runs of {runs}: see {folder}/errors.txt")
    return found


def _call(command: list[str], folder: Path, **environment: str) -> None:
    with (folder / "output.txt").open("a") as output:
        code = subprocess.run(
            command, cwd=folder, env=_environment() | environment, stdout=output, stderr=output, check=False
        ).returncode
    if code != 0:
        raise RuntimeError(f"{command[1:4]} ended with {code}: see {folder}/output.txt")


def _environment() -> dict[str, str]:
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _data(root: str) -> list[str]:
    return ["data.name=image_folder", f"data.root={root}"]


def _pixels(split: ImageSet) -> torch.Tensor:
    return next(split.images.batches([torch.arange(len(split.labels_N))]))


def _rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
