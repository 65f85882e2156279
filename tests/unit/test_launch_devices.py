import os
from pathlib import Path
from typing import Any

import pytest

from launch.local.start.devices import choose_processes, gpus_for, require_given_gpus
from trainlib.errors import TrainlaunchError, UserError
from trainlib.runs.machine.gpus import VISIBLE, count_gpus, gpu_loads, gpus_without, visible_gpus

LISTING = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d1ba0bc-d33b-2c1b-524a-9e3fd4a3e8c8)
  MIG 3g.20gb     Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-0b2e4d3f-1f1c-4a6e-9a53-2b6b3a1c7d11)
"""


@pytest.mark.parametrize(
    ("installed", "environment", "expected"),
    [
        (0, {}, 0),
        (4, {}, 4),
        (4, {"CUDA_VISIBLE_DEVICES": "0,2"}, 2),
        (4, {"CUDA_VISIBLE_DEVICES": "GPU-5d1ba0bc, GPU-0b2e4d3f"}, 2),
        (4, {"CUDA_VISIBLE_DEVICES": ""}, 0),
        (4, {"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        (4, {"CUDA_VISIBLE_DEVICES": "1,-1,2"}, 1),
        (1, {"CUDA_VISIBLE_DEVICES": "0,1,2"}, 1),
        (0, {"CUDA_VISIBLE_DEVICES": "0,1"}, 0),
        (4, {"HIP_VISIBLE_DEVICES": "1"}, 1),
        (4, {"ROCR_VISIBLE_DEVICES": "0,1,2", "HIP_VISIBLE_DEVICES": "0,1"}, 2),
        (4, {"ROCR_VISIBLE_DEVICES": ""}, 0),
        (4, {"ACCELERATE_USE_CPU": "true"}, 0),
        (4, {"ACCELERATE_USE_CPU": "false"}, 4),
    ],
)
def test_visible_gpus(installed: int, environment: dict[str, str], expected: int) -> None:
    assert visible_gpus(installed, environment) == expected


@pytest.mark.parametrize(
    ("requested", "gpus", "expected"), [(None, 0, 1), (None, 1, 1), (None, 8, 8), (1, 8, 1), (8, 8, 8), (4, 0, 4)]
)
def test_choose_processes(requested: int | None, gpus: int, expected: int) -> None:
    assert choose_processes(requested, gpus) == expected


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match=r"--processes: got 3, must be at most 2"):
        choose_processes(3, 2)


@pytest.mark.parametrize(
    ("visible", "left_out", "expected"),
    [
        (None, [], ["5d1ba0bc-d33b-2c1b-524a-9e3fd4a3e8c8", "0b2e4d3f-1f1c-4a6e-9a53-2b6b3a1c7d11"]),
        (None, ["0b2e4d3f-1f1c-4a6e-9a53-2b6b3a1c7d11"], ["5d1ba0bc-d33b-2c1b-524a-9e3fd4a3e8c8"]),
        ("1,0", ["GPU-5d1ba0bc-d33b-2c1b-524a-9e3fd4a3e8c8"], ["0b2e4d3f-1f1c-4a6e-9a53-2b6b3a1c7d11"]),
        ("1", ["GPU-5d1ba0bc-d33b-2c1b-524a-9e3fd4a3e8c8"], ["0b2e4d3f-1f1c-4a6e-9a53-2b6b3a1c7d11"]),
        ("GPU-5d1ba0bc,GPU-0b2e4d3f", ["0b2e4d3f-1f1c-4a6e-9a53-2b6b3a1c7d11"], ["5d1ba0bc"]),
        ("", [], []),
    ],
)
def test_a_gpu_that_computes_wrongly_is_left_out(
    visible: str | None, left_out: list[str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'E'\n{LISTING}E\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_without(left_out) == [f"GPU-{uuid}" for uuid in expected]


def without_variables(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Programs are found in `path` alone."""
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    for name in (*VISIBLE, "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)


def nvidia_smi(folder: Path, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


def make_files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("cpu_cores_count 0\nsimd_count 256\n" if name.endswith("1/properties") else "")


KFD = ("dev/kfd", *(f"sys/class/kfd/kfd/topology/nodes/{node}/properties" for node in (0, 1)))  # node 0 is the CPU


@pytest.mark.parametrize(
    ("script", "files", "expected"),
    [
        (f"cat <<'E'\n{LISTING}E", [], 2),
        (f"cat <<'E'\n{LISTING}E", ["dev/nvidia0"], 2),
        ("echo no driver >&2; exit 9", [], 0),
        ("echo Driver/library version mismatch >&2; exit 18", ["proc/driver/nvidia/gpus/0000:01:00.0/information"], 1),
        ("echo No devices were found; exit 6", ["dev/nvidia0"], 0),  # a job that was given none of the node's
        (None, [], 0),
        (None, ["dev/nvidia0", "dev/nvidia1", "dev/nvidiactl", "dev/nvidia-uvm"], 2),
        (None, ["dev/nvidiactl", "proc/driver/nvidia/gpus/a/information", "proc/driver/nvidia/gpus/b/information"], 2),
        (None, KFD, 1),
        (None, KFD[1:], 0),
    ],
)
def test_counts_what_the_driver_lists_or_else_the_device_files(
    script: str | None, files: list[str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_variables(monkeypatch, tmp_path / "bin")
    if script is not None:
        nvidia_smi(tmp_path / "bin", script)
    make_files(tmp_path / "root", *files)
    assert count_gpus(tmp_path / "root") == expected


@pytest.mark.parametrize(("device", "expected"), [("auto", 2), ("cuda", 2), ("cpu", 0), ("mps", 0)])
def test_train_device_decides_whether_gpus_count(
    device: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, f"cat <<'E'\n{LISTING}E")
    without_variables(monkeypatch, tmp_path)
    assert gpus_for(device) == expected
    require_given_gpus(gpus_for(device), device, {"SLURM_GPUS_ON_NODE": "2"} if device in ("auto", "cpu") else {})


def test_a_job_with_gpus_that_are_not_there_does_not_train_on_the_cpu() -> None:
    with pytest.raises(TrainlaunchError, match=r"SLURM gave this job 2 GPUs .* none can be found"):
        require_given_gpus(0, "auto", {"SLURM_GPUS_ON_NODE": "2"})


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1", "2"]),
        ("1", ["1"]),
        ("GPU-aa", ["0"]),
        ("2,0", ["0", "2"]),
        ("", []),
        ("-1", []),
        ("0,-1,2", ["0"]),
    ],
)
def test_the_load_of_the_gpus_that_may_be_used(
    visible: str | None, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the driver's program does not know, as of a part of a GPU, is left out."""
    lines = "0, GPU-aa11, 97, 35000, 143771\n1, GPU-bb22, [N/A], [N/A], 143771\n2, GPU-cc33, 0, 4, 143771"
    nvidia_smi(tmp_path / "bin", f"cat <<'E'\n{lines}\nE")
    without_variables(monkeypatch, tmp_path / "bin")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = gpu_loads()
    assert [load["index"] for load in found] == expected
    whole: dict[str, dict[str, Any]] = {
        "0": {"percent": 97.0, "memory_used": 35000 * 1024**2, "memory_total": 143771 * 1024**2},
        "1": {"memory_total": 143771 * 1024**2},
        "2": {"percent": 0.0, "memory_used": 4 * 1024**2, "memory_total": 143771 * 1024**2},
    }
    assert found == [{"index": index} | whole[index] for index in expected]


@pytest.mark.parametrize("script", ["exit 9", "echo Unable to determine the device handle; exit 15", "echo nonsense"])
def test_without_an_answer_no_load_is_told(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tmp_path / "bin", script)
    without_variables(monkeypatch, tmp_path / "bin")
    assert gpu_loads() == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_loads() == []
