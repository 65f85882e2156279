"""`launch run`, `accelerate launch` and `torchrun` start the same training: the same bits at the same world size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY
from patience import HANG
from soak import only_in_soak

from trainlib.runs.directory import RunDirectory

TRAINING = [
    "quickstart",
    "data={name: synthetic, limit: 70, val_fraction: 0.01, augment: {crop_padding: 2}}",
    "train={epochs: 1, batch_size: 32}",
    "tracking={tensorboard: false}",
]
PYTHON = [sys.executable, "-m"]
ACCELERATE = [*PYTHON, "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
TORCHRUN = [*PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node"]

# The start of each launcher with so many processes, and variables that it needs.
LAUNCHERS: dict[int, dict[str, tuple[list[str], dict[str, str]]]] = {
    2: {
        "launch": ([*PYTHON, "launch", "run", *TRAINING, "--processes", "2"], {}),
        "accelerate": ([*ACCELERATE, "-m", "trainlib.train", *TRAINING], {"ACCELERATE_USE_CPU": "true"}),
        "torchrun": ([*TORCHRUN, "2", "-m", "trainlib.train", *TRAINING], {}),
    },
    1: {
        "launch": ([*PYTHON, "launch", "run", *TRAINING], {}),
        "with another program's variables": (
            [*PYTHON, "launch", "run", *TRAINING],
            {
                "ACCELERATE_USE_DEEPSPEED": "true",
                "ACCELERATE_TORCH_DEVICE": "cuda",
                "ACCELERATE_MIXED_PRECISION": "fp16",
            },
        ),
        "python": ([*PYTHON, "trainlib.train", *TRAINING], {"ACCELERATE_DYNAMO_BACKEND": "inductor"}),
        "torchrun": ([*TORCHRUN, "1", "-m", "trainlib.train", *TRAINING], {}),
    },
}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Without the thread counts that the other tests set: choosing them is part of what is tested here."""
    ours = ("OMP_NUM_THREADS", "TRAINLAUNCH_NUM_THREADS")
    repository = str(REPOSITORY)
    return {key: value for key, value in os.environ.items() if key not in ours} | {"PYTHONPATH": repository}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [pytest.param(1, marks=only_in_soak), 2])
def test_the_same_weights_from_every_launcher(tmp_path: Path, environment: dict[str, str], world_size: int) -> None:
    digests = {}
    for name, (command, variables) in LAUNCHERS[world_size].items():
        cwd = tmp_path / name
        cwd.mkdir()
        done = subprocess.run(
            command, cwd=cwd, env=environment | variables, capture_output=True, text=True, timeout=HANG, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "test accuracy" in done.stdout
        assert name != "launch" or "Warning" not in done.stdout + done.stderr  # of what torch or Accelerate deprecates
        assert all(variable in done.stderr + done.stdout for variable in variables if variable != "ACCELERATE_USE_CPU")
        summary = RunDirectory(cwd / "runs/quickstart").summary()
        assert (summary["status"], summary["world_size"]) == ("completed", world_size)
        logs = {path.name for path in (cwd / "runs/quickstart/logs").glob("rank-*")}
        assert logs == {f"rank-{rank}.log" for rank in range(world_size)}
        digests[name] = summary["weights_sha256"]
    assert len(set(digests.values())) == 1, digests


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param("train.reproducibility=elastic", marks=only_in_soak),
        pytest.param("train.micro_batch_size=8", marks=only_in_soak),
        pytest.param("model.freeze=features", marks=only_in_soak),
    ],
)
def test_torchrun_with_one_process(tmp_path: Path, environment: dict[str, str], more: str) -> None:
    """It makes a process group of one, which takes part in everything that ranks do together."""
    digests = set()
    for name, command in [("one", LAUNCHERS[1]["launch"][0]), ("two", LAUNCHERS[1]["torchrun"][0])]:
        (tmp_path / name).mkdir()
        done = subprocess.run(
            [*command, more], cwd=tmp_path / name, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        digests.add(RunDirectory(tmp_path / name / "runs/quickstart").summary()["weights_sha256"])
    assert len(digests) == 1


@pytest.mark.slow
def test_a_single_process_instead_of_several_is_an_error(tmp_path: Path, environment: dict[str, str]) -> None:
    """What `accelerate launch --cpu --num_processes 2` does on a machine without a GPU."""
    done = subprocess.run(
        [*PYTHON, "trainlib.train", *TRAINING],
        cwd=tmp_path,
        env=environment | {"TRAINLAUNCH_WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 2
    assert "asked for 2 processes, but 1 came up" in done.stderr
