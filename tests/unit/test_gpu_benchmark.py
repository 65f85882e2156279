"""The benchmarks for a GPU, on the CPU at tiny sizes, with stand-ins for airbench."""

import argparse
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paths import REPOSITORY
from soak import only_in_soak
from tiny import make_images

from bench.gpu import run as benchmark
from bench.gpu.airbench_runs import Run, package_speed, parse_runs, run_of, write_tensors
from bench.gpu.budget import Budget, minutes
from bench.gpu.syncs import count_waits, waits_text
from bench.gpu.vgg import peak_flops, step_flops
from bench.rounds import OverError, Rounds
from bench.workload import Workload

# As airbench94_muon.py prints: a first run that warms up, the run's number once, times that add up.
PRINTED = """
-------------------------------------------------------------------------
|  run     |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |
-------------------------------------------------------------------------
|  warmup  |      0  |     0.1000  |   0.1000  |               |        9.0000  |
|          |   eval  |     0.1000  |   0.1000  |       0.1000  |        9.5000  |
-------------------------------------------------------------------------
|       0  |      0  |     0.5000  |   0.4000  |               |        0.3000  |
|          |      1  |     0.9000  |   0.9300  |               |        2.0000  |
|          |   eval  |     0.9000  |   0.9300  |       0.9410  |        2.2500  |
-------------------------------------------------------------------------
|       1  |      0  |     0.9000  |   0.9300  |               |        1.0000  |
|          |   eval  |     0.9000  |   0.9300  |       0.9390  |        1.5000  |
-------------------------------------------------------------------------
"""

PACKAGE = """
import torch
from torch import nn

def make_net94():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

def warmup94():
    print("|  warmup  |         |  0.9  |  0.1  |         |               |        0.0100  |")

def train94(run=0):
    data = torch.load("cifar10/train.pt")
    assert data["images"].dtype == torch.uint8 and data["images"].shape == (60, 32, 32, 3)
    print(f"|  {run}  |      0  |  0.9  |  0.5  |  0.9  |               |        1.0000  |")
    print("|          |   eval  |  0.9  |  0.5  |  0.9  |       0.9400  |        1.2500  |")
    return make_net94()
"""

SCRIPT = """
import sys
with open(sys.argv[0]) as file:
    code = file.read()
import torch
from torch import nn

class CifarNet(nn.Module):
    def cuda(self):
        return self
    def compile(self, mode):
        pass

def main(run, model):
    print(f"|  {run}  |      0  |  0.9  |  0.9  |         |        1.0000  |", flush=True)
    print("|          |   eval  |  0.9  |  0.9  | 0.9500  |        1.5000  |", flush=True)

if __name__ == "__main__":
    main("warmup", None)
    for run in range(10**9):
        main(run, None)
"""


RECIPE = """
data: {name: image_folder, val_fraction: 0}
train: {epochs: 1, batch_size: 20}
tracking: {wandb: {mode: disabled}, tensorboard: false}
"""


def run(folder: Path, *arguments: str) -> str:
    """The table of `python -m bench.gpu.run` on the CPU, with the stand-in for the package airbench."""
    (folder / "stand_in").mkdir()
    (folder / "stand_in" / "airbench.py").write_text(PACKAGE)
    command = [sys.executable, "-m", "bench.gpu.run", "--cpu", "--quick", "--results", str(folder / "results")]
    environment = {"CUDA_VISIBLE_DEVICES": "", "TRAINLAUNCH_NUM_THREADS": "1", "PYTHONPATH": str(folder / "stand_in")}
    result = subprocess.run(
        [*command, *arguments],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return (folder / "results" / "table.md").read_text()


@only_in_soak
def test_recipes_and_a_network_are_compared(tmp_path: Path) -> None:
    make_images(tmp_path / "images")
    for name, text in (("clone/airbench94_muon.py", SCRIPT), ("recipe/fast.yaml", RECIPE)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    options = ["--airbench", str(tmp_path / "clone"), "--config", str(tmp_path / "recipe/fast.yaml"), "--runs", "2"]
    table = run(tmp_path, "--parts", "airbench", "--data", str(tmp_path / "images"), *options)
    assert "\n| ours, 2 runs |" in table
    assert "| airbench94, 2 runs | 0.9400 (0.9400 to 0.9400) | 1.250 (1.250 to 1.250) |" in table
    assert "| airbench94_muon, 2 runs | 0.9500 (0.9500 to 0.9500) | 1.500 (1.500 to 1.500) |" in table
    assert "\n| its own loop | 10,240 |" in table  # ten epochs, of a batch at least, in a second
    assert "\n| airbench94_muon / ours, seconds of a run |" in table
    assert (tmp_path / "results" / "airbench" / "model.pt").exists()


@pytest.mark.soak
def test_a_training_is_killed_goes_on_and_is_trained_again(tmp_path: Path) -> None:
    table = run(tmp_path, "--parts", "smoke")
    assert "| a training that is killed goes on | 1.000 (1.000 to 1.000) | >= 1 | yes |" in table
    assert "| trained again, it has the same bits | 1.000 (1.000 to 1.000) | >= 1 | yes |" in table


@pytest.mark.soak
def test_vgg16_and_waits(tmp_path: Path) -> None:
    table = run(tmp_path, "--parts", "vgg16,waits")
    assert "\n| VGG16: ours / Accelerate, tensors |" in table
    assert "\n0 waits in 8 steps that write no row." in table  # of ten, without the first and the last
    assert "\n| waits for the GPU in a step | 0.000 (0.000 to 0.000) | <= 0 | yes |" in table


def test_loops_are_compared_for_each_size_of_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def seconds(workload: Workload, arms: object, directory: Path) -> dict[str, list[float]]:
        sizes.append((workload.model, workload.batch_size))
        return {"ours": [1.0, 1.0], "bare loop": [2.0, 2.0], "timm, tensors": [3.0, 3.0]}

    monkeypatch.setattr(benchmark, "time_arms", seconds)
    monkeypatch.setattr(benchmark, "time_overhead", seconds)
    options = ["run", "--cpu", "--quick", "--parts", "loops", "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", [*options, "--batch-sizes", "8,16"])
    benchmark.main()
    assert sizes == [("cnn", 8), ("one-layer", 8), ("cnn", 16), ("one-layer", 16)]
    table = (tmp_path / "results" / "table.md").read_text()
    assert "| batches of 16: ours / timm, tensors | 3.000 (3.000 to 3.000) | >= 1 | yes |" in table


def test_a_budget_is_shared_by_weight_and_what_has_no_time_is_left_out() -> None:
    now = 100.0
    budget = Budget(120.0, lambda: now)
    assert budget.until("waits", ["loops", "airbench"]) is None  # a ninth of it: too little
    assert budget.until("loops", ["airbench"]) == 160.0
    now = 110.0  # it was done early: the rest has more
    assert budget.until("airbench", []) == 220.0
    now = 210.0
    assert budget.until("airbench", []) is None
    assert Budget(clock=lambda: now).until("waits", ["airbench"]) == math.inf
    assert minutes("8m") == 480.0
    for text in ("8", "0m", "m", "8 m", "-1m"):
        with pytest.raises(argparse.ArgumentTypeError, match="must be minutes like 8m"):
            minutes(text)


def test_each_round_begins_as_the_first_one_did_with_memory_in_its_place() -> None:
    """A CUDA graph holds on to it."""
    network = torch.nn.Linear(2, 1)
    told: list[tuple[float, list[float]]] = []
    places: set[int] = set()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    turns = iter([True, True, True, False])
    parent = SimpleNamespace(recv=lambda: next(turns), send=told.append)
    rounds = Rounds(parent, 2)  # type: ignore[arg-type]

    def step() -> None:
        optimizer.zero_grad()
        loss = (network(torch.ones(1, 2)) - 3).square().sum()
        loss.backward()
        optimizer.step()
        places.update(state["momentum_buffer"].data_ptr() for state in optimizer.state.values())
        rounds.step(loss)

    rounds.begin(network, optimizer)
    for _ in range(5):
        step()
    with pytest.raises(OverError):
        step()
    assert len(places) == 2  # of weight and bias
    first, *others = [losses for _, losses in told]
    assert first[0] != first[1]
    assert others == [first, first]


def test_what_airbench_prints_is_read() -> None:
    assert list(parse_runs(PRINTED.splitlines())) == [Run(0.941, 2.25, 2.0), Run(0.939, 1.5, 1.0)]
    # 48 batches in an epoch, 9.9 epochs: 476 steps of 1,024 images.
    assert package_speed([Run(0.94, 2.5, 2.0)], 50_000) == [476 * 1024 / 2.0]


def test_airbench_gets_the_same_pictures(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    make_images(tmp_path / "images")
    assert write_tensors(str(tmp_path / "images"), tmp_path / "tensors") == 60
    for split in ("train", "test"):
        found = torch.load(tmp_path / "tensors" / "cifar10" / f"{split}.pt")
        expected = ImageFolder(tmp_path / "images" / split)
        for image, label, (picture, expected_label) in zip(found["images"], found["labels"], expected, strict=True):
            assert torch.equal(image, PILToTensor()(picture).permute(1, 2, 0))
            assert label == expected_label
        assert found["classes"] == ["a", "b"]


def test_our_seconds_are_training_and_the_last_evaluation(tmp_path: Path) -> None:
    """Two epochs of 100 images at 50 a second, and 20 tested at 10 a second, of a run that took a minute in all."""
    rows = [
        {"split": "train", "scope": "step", "count": 10, "images_per_second": 1.0},
        {"split": "train", "scope": "epoch", "count": 100, "images_per_second": 40.0},
        {"split": "val", "count": 7, "images_per_second": 1.0},
        {"split": "train", "scope": "epoch", "count": 100, "images_per_second": 60.0},
        {"split": "test", "count": 20, "images_per_second": 10.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"images_per_second": 50.0, "seconds": 60.0, "test": {"accuracy": 0.94}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert run_of(tmp_path) == Run(0.94, 4.0 + 2.0, 4.0)


def workload(folder: Path, model: str, batch_size: int, image_size: int = 32) -> Workload:
    made = Workload(None, folder / "images.pt", model, 3, 2, 1, batch_size, image_size=image_size, noise=4 * batch_size)
    made.prepare()
    return made


def test_operations_of_a_step(tmp_path: Path) -> None:
    """Two operations a weight and position, three times: the outputs, and the gradients of weights and of inputs."""
    small = workload(tmp_path, "cnn", 2)
    forward = 2 * 2 * (25 * (3 * 32 * 32**2 + 32 * 32 * 16**2 + 32 * 64 * 8**2) + 1024 * 64 + 64 * 10)
    first = 2 * 2 * 25 * 3 * 32 * 32**2  # whose input needs no gradient
    assert step_flops(small) == 3 * forward - first
    assert peak_flops(torch.device("cpu"), 64, repeats=2) > 0


@pytest.mark.parametrize("waits_in_a_step", [0, 1])
def test_waits_are_counted_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits_in_a_step: int
) -> None:
    """Torch's warnings while they are on, as the real mode gives them; another warning is none of them."""
    from trainlib.data.batches.plan import Plan
    from trainlib.models.losses import Objective

    state = {"mode": "default"}
    original = Objective.denominator

    def denominator(self: Objective, labels_N: torch.Tensor) -> float:
        if state["mode"] == "warn":
            for _ in range(waits_in_a_step):
                warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)", stacklevel=1)
        return original(self, labels_N)

    monkeypatch.setattr(Objective, "denominator", denominator)
    small = workload(tmp_path, "cnn", 4)
    assert isinstance(small.plan, Plan)
    assert small.plan.steps_per_epoch == 4
    stacks, steps = count_waits(small, skip=1, set_mode=lambda mode: state.update(mode=mode))
    assert steps == 2
    assert state["mode"] == "default"
    calls = 2 * steps  # of the batch in the loop, of the piece in the step
    assert sum(stacks.values()) == calls * waits_in_a_step
    text = waits_text(stacks, steps)
    assert text.startswith(f"{calls * waits_in_a_step} waits in 2 steps")
    assert ("trainlib/training/step/train_step.py" in text) == (waits_in_a_step > 0)
