"""`launch doctor`: each check against the real thing, whole and broken."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ranks
from doctor_checks import CANARY, verdicts
from paths import REPOSITORY
from patience import HANG
from soak import only_in_soak

from launch.doctor import ranks as rank_checks
from launch.doctor import software, system
from launch.doctor.finding import Verdict, note, ok, problem, row, summary
from launch.doctor.ranks import Outcome

FACTS: dict[str, Any] = {
    "torch": "2.15.0",
    "cuda": None,
    "nccl": None,
    "device": "cpu",
    "gpus": [],
    "threads": 4,
    "cpu_capability": "AVX2",
    "bf16": False,
    "torchvision": None,
    "cache": "/cache",
}
H100 = {"name": "NVIDIA H100 80GB HBM3", "memory": 80 << 30, "capability": "9.0"}
ON_GPUS = FACTS | {"cuda": "13.0", "nccl": "2.28.9", "device": "cuda", "gpus": [H100, H100], "bf16": True}
REDUCED = {"bytes": 1 << 20, "seconds": 0.002, "bus_bandwidth": 0.5e9, "correct": True, "backend": "gloo"}


def test_rows_fit_a_terminal_and_can_be_copied_from() -> None:
    """Whole text: columns, words wrapped at 80, a path that is too long left whole."""
    path = "/a/very/long/path/of/a/run/directory/that/nobody/should/break/into/two/pieces/ever"
    found = [
        ok("Python", "3.11.7 on Linux"),
        note("W&B", "wandb 0.31.0, not logged in, and so many more words that they do not fit", "wandb login"),
        problem("runs", f"{path} cannot be written", "mend its permissions, or change to a folder that is writable"),
    ]
    assert (
        "\n".join(row(finding) for finding in found)
        == f"""\
ok       Python      3.11.7 on Linux
note     W&B         wandb 0.31.0, not logged in, and so many more words that
                     they do not fit
                     -> wandb login
problem  runs        {path}
                     cannot be written
                     -> mend its permissions, or change to a folder that is
                        writable"""
    )
    assert summary(found) == "1 problem, 1 note"
    assert summary([*found[:2], found[1]]) == "no problems, 2 notes"
    assert summary(found[:1]) == "no problems"


@pytest.mark.parametrize(
    ("requirements", "installed", "expected"),
    [
        (["torch (==2.11.0)", "numpy"], {"torch": "2.11.0+cu128", "numpy": "2"}, []),
        (["torch==2.11.0"], {"torch": "2.12.0"}, ["torch is 2.12.0, but torchvision needs ==2.11.0"]),
        (["torch>=2.11"], {"torch": "2.9.1"}, ["torch is 2.9.1, but torchvision needs >=2.11"]),
        (["torch>=2.11"], {"torch": "2.11.0a0+git123"}, []),
        (["pillow!=8.3.*,>=5.3.0"], {"pillow": "12.0.0"}, []),
        (["torch"], {"torch": None}, ["torch is missing, which torchvision needs"]),
        (["scipy ; extra == 'scipy'"], {}, []),
    ],
)
def test_requirements_that_do_not_hold(
    requirements: list[str], installed: dict[str, str | None], expected: list[str]
) -> None:
    assert software.unmet("torchvision", requirements, installed) == expected


@only_in_soak
def test_the_packages_of_this_machine_fit_as_pip_says_too() -> None:
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    complaint = any(line.startswith(("torchvision ", "trainlaunch ")) for line in done.stdout.splitlines())
    assert (("packages", "problem") in verdicts(software.check_software())) == complaint


@pytest.mark.parametrize(
    ("files", "locked", "infiniband", "verdict"),
    [
        (1024, 8 << 20, False, "ok"),
        (256, resource.RLIM_INFINITY, False, "note"),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, True, "ok"),
        (1024, 8 << 20, True, "note"),
    ],
)
def test_limits(files: int, locked: int, infiniband: bool, verdict: str) -> None:
    assert system.limits(files, locked, has_infiniband=infiniband).verdict == verdict


def test_shared_memory_as_docker_gives_it() -> None:
    assert row(system.shared_memory(64 << 20)) == (
        "note     /dev/shm    64 MiB\n"
        "                     -> several GPUs need more: docker run --shm-size=1g (or\n"
        "                        --ipc=host)"
    )
    assert system.shared_memory(8 << 30).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("facts", "gpus", "expected"),
    [
        (FACTS, 0, [("torch", "ok"), ("devices", "ok"), ("precision", "ok")]),
        (ON_GPUS, 2, [("torch", "ok"), ("devices", "ok"), ("precision", "ok")]),
        (ON_GPUS | {"bf16": False}, 2, [("torch", "ok"), ("devices", "ok"), ("precision", "note")]),
        (FACTS, 2, [("torch", "problem"), ("devices", "ok"), ("precision", "ok")]),
        (FACTS | {"torchvision": "RuntimeError: operator torchvision::nms does not exist"}, 0, [("torch", "problem")]),
    ],
    ids=["cpu", "gpus", "old gpus", "torch for CPUs beside GPUs", "torchvision of another torch"],
)
def test_devices_as_torch_sees_them(facts: dict[str, object], gpus: int, expected: list[tuple[str, str]]) -> None:
    assert verdicts(rank_checks.devices(facts, gpus, "580.65", set()))[: len(expected)] == expected


def test_gpus_are_counted_by_model() -> None:
    texts = [finding.text for finding in rank_checks.devices(ON_GPUS, 2, "580.65", set())]
    assert texts == [
        "torch 2.15.0, built for CUDA 13.0, NCCL 2.28.9",
        "2 x NVIDIA H100 80GB HBM3 (80 GiB), driver 580.65",
        "bf16 and fp16",
    ]


@pytest.mark.parametrize(
    ("outcome", "processes", "verdict", "said"),
    [
        (Outcome(FACTS, [REDUCED], 0, ""), 2, "ok", "1 MiB in 2.00 ms; bus bandwidth 0.50 GB/s; sums are right"),
        (Outcome(FACTS, [], 0, ""), 1, "ok", "one process, nothing to add up"),
        (Outcome(FACTS, [REDUCED | {"correct": False}], 0, ""), 2, "problem", "wrong sums between 2 ranks"),
        (Outcome(FACTS, [], 1, "no route to host"), 2, "problem", "failed between 2 ranks: exit code 1: no route to"),
        (Outcome(FACTS, [REDUCED], None, ""), 2, "problem", "failed between 2 ranks: nothing came within 120 s"),
    ],
)
def test_verdicts_on_the_all_reduce(outcome: Outcome, processes: int, verdict: str, said: str) -> None:
    finding = rank_checks.all_reduce(outcome, processes)
    assert finding.verdict == verdict
    assert said in finding.text


def measured(broken: bool) -> int:
    """In each rank: measure one size, rank 1 with an all-reduce that does nothing where it is to be broken."""
    import torch
    import torch.distributed as dist

    from trainlib.config import TrainConfig
    from trainlib.distributed import process_group
    from trainlib.distributed.checks import measure

    with process_group.joined(TrainConfig()):
        if broken:
            ranks.replace(dist, "all_reduce", lambda values, *arguments, **options: None)
        started = time.perf_counter()
        found = measure.measure(1 << 20, torch.device("cpu"))
        assert found.seconds < time.perf_counter() - started
        assert found.bus_bandwidth == pytest.approx(2 * 2 / 3 * (1 << 20) / found.seconds)
        return 10 + found.correct


@pytest.mark.parametrize("broken", [False, True])
def test_sums_are_checked(broken: bool, tmp_path: Path) -> None:
    """Three ranks: the bus bandwidth is nccl-tests' formula, and sums that do not come about are seen by every rank."""
    codes = ranks.run(measured, broken, world_size=3, cwd=tmp_path)
    assert codes == [10 + (not broken)] * 3, ranks.console(tmp_path)


def test_ranks_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that does not load is told with its own last words; ranks that hang are ended."""
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(REPOSITORY)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = rank_checks.check_ranks(1)
    assert finding.verdict is Verdict.PROBLEM
    assert "libcudart.so.13: cannot open shared object file" in finding.text
    (tmp_path / "torch.py").write_text("import time; time.sleep(3600)\n")
    start = time.monotonic()
    assert rank_checks.run_ranks(1, seconds=1.0).exit_code is None
    assert time.monotonic() - start < HANG


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    """From outside: two real ranks, JSON that holds every topic once, an exit code that fits, no secret, no files."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "WANDB_MODE": "offline", "WANDB_API_KEY": CANARY}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PATH": os.path.dirname(sys.executable)}
    words = [sys.executable, "-m", "launch", "doctor", "--processes", "2", "--json"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    found = {finding["topic"]: finding for finding in json.loads(done.stdout)}
    topics = "Python packages machine limits /dev/shm runs SLURM W&B torch devices precision all-reduce cache"
    assert list(found) == topics.split()
    assert found["all-reduce"]["verdict"] == "ok"
    assert "2 ranks through gloo" in found["all-reduce"]["text"]
    assert done.returncode == int(any(finding["verdict"] == "problem" for finding in found.values()))
    assert CANARY not in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == []
