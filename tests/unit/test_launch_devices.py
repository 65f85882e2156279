from pathlib import Path

import pytest

from launch.local.devices import choose_processes, count_gpus, visible_gpus
from trainlib.errors import UserError

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


@pytest.mark.parametrize(("script", "expected"), [(f"cat <<'E'\n{LISTING}E", 2), ("echo no driver >&2; exit 9", 0)])
def test_counts_what_nvidia_smi_lists(
    script: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    assert count_gpus() == expected


def test_no_nvidia_smi_means_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_gpus() == 0
