"""Faults of training on GPUs: numbers that are not finite, memory that runs out, and a rank that dies."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ranks
from gpu_ranks import Gpus
from patience import wait_until

pytestmark = pytest.mark.slow


def holds(gpus: Gpus, cwd: Path, name: str, *args: object, world_size: int = 1, **options: object) -> None:
    codes = gpus.run(f"gpu_faults:{name}", *args, world_size=world_size, cwd=cwd, **options)
    assert codes == [0] * world_size, "\n".join(ranks.console(cwd, rank) for rank in range(world_size))


@pytest.mark.parametrize("optimizer", ["AdamW", "MuonSGD"])
def test_a_nan_on_one_of_two_gpus_ends_both_with_the_weights_before_it(
    gpus: Gpus, tmp_path: Path, optimizer: str
) -> None:
    for is_bad in (True, False):
        holds(gpus, tmp_path, "nan_on_one_gpu", optimizer, is_bad, str(tmp_path / f"weights-{is_bad}"), world_size=2)
    assert len({path.read_text() for path in tmp_path.glob("weights-*")}) == 1


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_loss_scaler_skips_are_told_as_skipped(gpus: Gpus, tmp_path: Path, fused: bool) -> None:
    holds(gpus, tmp_path, "fp16_overflow", fused)


@pytest.mark.parametrize("fused", [False, True])
def test_a_nan_in_fp16_ends_the_run(gpus: Gpus, tmp_path: Path, fused: bool) -> None:
    holds(gpus, tmp_path, "fp16_nan", fused)


@pytest.mark.parametrize("phase", ["forward", "backward", "update", "evaluation"])
def test_memory_that_runs_out_once_costs_no_step(gpus: Gpus, tmp_path: Path, phase: str) -> None:
    holds(gpus, tmp_path, "memory_runs_out", phase)


def test_what_fits_into_a_smaller_gpu_is_found_before_training(gpus: Gpus, tmp_path: Path) -> None:
    holds(gpus, tmp_path, "memory_by_size")


def test_find_batch_names_what_trains_on_the_smaller_gpu(gpus: Gpus, tmp_path: Path) -> None:
    """Two steps of that size train there, of half as many more do not; and do so on the larger GPU."""
    larger, smaller = 90_000_000, 60_000_000  # bytes of a GPU's memory, of which half is for the images of the data
    words = ["quickstart", "data.limit=256", "optimizer={name: AdamW, lr: 0.01}"]

    def trains(images: int, num_bytes: int) -> bool:
        arguments = (words, images, num_bytes)
        return gpus.run("gpu_faults:trains_in_one_piece", *arguments, world_size=2, cwd=tmp_path) == [0, 0]

    whole = [*words, "train.batch_size=256"]
    codes = gpus.run("gpu_faults:find_batch", whole, [larger, smaller], world_size=2, cwd=tmp_path)
    assert codes == [0, 0], ranks.console(tmp_path)
    size = int(ranks.console(tmp_path).splitlines()[-1].removeprefix("train.micro_batch_size="))
    assert trains(size, smaller), ranks.console(tmp_path)
    assert not trains(size + size // 2, smaller)
    assert trains(size + size // 2, larger), ranks.console(tmp_path)


def test_a_model_that_does_not_fit_is_told_in_one_line(gpus: Gpus, tmp_path: Path) -> None:
    """On several ranks torch's own reducer needs a first pass, which is no trial that may fail."""
    for num_bytes, what in ((100_000_000, "the model, with its gradient and one image,"), (8_000_000, "the model")):
        codes = gpus.run(
            "gpu_faults:find_batch", ["quickstart"], [num_bytes] * 2, world_size=2, cwd=tmp_path, emulate=False
        )
        assert codes == [2, 2], ranks.console(tmp_path)
        assert f"error: {what} does not fit into the memory of the device: choose" in ranks.console(tmp_path)
        assert "Traceback" not in ranks.console(tmp_path)


def test_ranks_that_see_one_gpu_each_use_it(gpus: Gpus, tmp_path: Path) -> None:
    holds(gpus, tmp_path, "one_gpu_for_each_task", world_size=2, FAKE_CUDA_DEVICES=1)


def test_ranks_that_would_share_gpus_are_refused(gpus: Gpus, tmp_path: Path) -> None:
    codes = gpus.run("gpu_faults:fewer_gpus_than_ranks", world_size=3, cwd=tmp_path, FAKE_CUDA_DEVICES=2)
    assert codes == [1, 1, 0], ranks.console(tmp_path, 2)  # only rank 2 has none


def test_kernels_are_chosen_by_asking_for_them(gpus: Gpus, tmp_path: Path) -> None:
    holds(gpus, tmp_path, "adagrad_without_fused_kernel")


TRAINING = [
    "quickstart",
    "name=run",
    "data={name: synthetic, limit: 400}",
    "tracking={log_every: 1}",
    "train.epochs=50",
]


def test_a_rank_that_dies_in_nccl_is_named(gpus: Gpus, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch", "run", *TRAINING, "--processes", "2", "--restarts", "0"]
    environment = gpus.environment(FAKE_CUDA_DEVICES="2")
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as launched:
        metrics = tmp_path / "runs/run/metrics.jsonl"
        wait_until(lambda: launched.poll() is not None or (metrics.is_file() and metrics.stat().st_size > 1000))
        victims = [
            child
            for child in psutil.Process(launched.pid).children(recursive=True)
            if child.environ().get("RANK") == "1" and "trainlib.train" in child.cmdline()
        ]
        assert victims, launched.communicate()[1]
        victims[0].send_signal(signal.SIGKILL)
        _, told = launched.communicate(timeout=60)
    assert launched.returncode == 137, told
    assert "rank 1 on" in told
    assert "killed by SIGKILL" in told


@pytest.mark.parametrize(
    ("words", "variables", "told"),
    [
        ([], {"FAKE_CUDA_DRIVER": "11040"}, "this machine has 1 GPU, which torch"),
        (["train.device=cuda"], {"FAKE_CUDA_DRIVER": "11040"}, "got cuda, which torch"),
        (["--processes", "2"], {"FAKE_CUDA_DRIVER": "11040", "FAKE_CUDA_DEVICES": "2"}, "this machine has 2 GPUs"),
    ],
)
def test_a_driver_that_is_too_old_is_an_error_and_no_training_on_the_cpu(
    gpus: Gpus, tmp_path: Path, words: list[str], variables: dict[str, str], told: str
) -> None:
    command = [sys.executable, "-m", "launch", "run", *TRAINING, *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=gpus.environment(**variables), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "driver on your system is too old" in done.stderr
    assert "train.device=cpu" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs/run/metrics.jsonl").exists()
