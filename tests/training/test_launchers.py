"""`launch run`, `accelerate launch` and `torchrun` start the same training: the same bits at the same world size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY
from patience import HANG

from trainlib.runs.directory import RunDirectory

TRAINING = [
    "quickstart",
    "data={name: synthetic, limit: 70, val_fraction: 0.01, augment: {crop_padding: 2}}",
    "train={epochs: 1, batch_size: 32}",
    "tracking={tensorboard: false}",
]
PYTHON = [sys.executable, "-m"]
ACCELERATE = [*PYTHON, "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
TORCHRUN = [*PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

LAUNCHERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "launch": ([*PYTHON, "launch", "run", *TRAINING, "--processes", "2"], {}),
    "accelerate": ([*ACCELERATE, "-m", "trainlib.train", *TRAINING], {"ACCELERATE_USE_CPU": "true"}),
    "torchrun": ([*TORCHRUN, "-m", "trainlib.train", *TRAINING], {}),
}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Without the thread counts that the other tests set: choosing them is part of what is tested here."""
    ours = ("OMP_NUM_THREADS", "TRAINLAUNCH_NUM_THREADS")
    repository = str(REPOSITORY)
    return {key: value for key, value in os.environ.items() if key not in ours} | {"PYTHONPATH": repository}


@pytest.mark.slow
def test_the_same_weights_from_every_launcher(tmp_path: Path, environment: dict[str, str]) -> None:
    digests = {}
    for name, (command, variables) in LAUNCHERS.items():
        cwd = tmp_path / name
        cwd.mkdir()
        done = subprocess.run(
            command, cwd=cwd, env=environment | variables, capture_output=True, text=True, timeout=HANG, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "test accuracy" in done.stdout
        summary = RunDirectory(cwd / "runs/quickstart").summary()
        assert (summary["status"], summary["world_size"]) == ("completed", 2)
        assert {path.name for path in (cwd / "runs/quickstart/logs").glob("rank-*")} == {"rank-0.log", "rank-1.log"}
        digests[name] = summary["weights_sha256"]
    assert len(set(digests.values())) == 1, digests


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
