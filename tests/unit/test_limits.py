"""Memory and CPU limits of control groups, from trees of files like those of the kernel, and from a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from needs import need

from trainlib.data.pictures.decoding import threads
from trainlib.runs.machine import limits

MIB = 1 << 20


def tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def memory(tmp_path: Path, membership: str, files: dict[str, str]) -> int:
    (tmp_path / "cgroup").write_text(membership)
    return limits.available_memory(tmp_path / "cgroup", tree(tmp_path / "sys", files))


def quota_v1(quota: str) -> list[tuple[str, str]]:
    return [("j/cpu.cfs_quota_us", quota), ("j/cpu.cfs_period_us", "100000")]


V2 = {"a/b/memory.max": f"{100 * MIB}\n", "a/b/memory.current": f"{60 * MIB}\n"}
V1 = {
    "memory/job/memory.limit_in_bytes": f"{100 * MIB}\n",
    "memory/job/memory.usage_in_bytes": f"{60 * MIB}\n",
    "memory/job/memory.stat": f"cache 1\ntotal_inactive_file {5 * MIB}\ntotal_active_file {MIB}\n",
    "memory/memory.limit_in_bytes": "9223372036854771712\n",  # what version 1 has for no limit
    "memory/memory.usage_in_bytes": "1\n",
}


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        pytest.param("0::/a/b\n", V2, 40, id="version 2"),
        pytest.param("0::/a/b/c\n", V2, 40, id="of the group around it"),
        pytest.param("0::/a/b\n", V2 | {"a/memory.max": str(30 * MIB), "a/memory.current": "0"}, 30, id="the lowest"),
        pytest.param("0::/a/b\n", V2 | {"a/b/memory.high": str(70 * MIB)}, 10, id="a soft limit"),
        pytest.param("0::/a/b\n", V2 | {"a/b/memory.stat": f"inactive_file {7 * MIB}\n"}, 47, id="cached files"),
        pytest.param("0::/host/path\n", {k.removeprefix("a/b/"): v for k, v in V2.items()}, 40, id="in a container"),
        pytest.param("0::/../x\n", {f"x/{Path(k).name}": v for k, v in V2.items()}, 40, id="a namespace"),
        pytest.param("5:memory:/job\n0::/\n", V1, 46, id="version 1"),
        pytest.param("5:cpu,memory:/job\n", {f"cpu,{k}": v for k, v in V1.items()}, 46, id="joint"),
        pytest.param("0::/a/b\n5:memory:/job\n", V1 | {f"unified/{k}": v for k, v in V2.items()}, 40, id="both"),
        pytest.param("0::/a/b\n", V2 | {"a/b/memory.current": str(200 * MIB)}, 0, id="nothing is left"),
    ],
)
def test_available_memory(tmp_path: Path, membership: str, files: dict[str, str], expected: int) -> None:
    assert memory(tmp_path, membership, files) == expected * MIB


@pytest.mark.parametrize(
    ("membership", "files"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/b/memory.current": "1\n"}),
        ("0::/a/b\n", {"a/b/memory.max": "rubbish\n", "a/b/memory.current": "1\n"}),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"}),
        ("", {}),
        ("no colon at all\n", V2),
    ],
)
def test_without_a_limit_it_is_the_machines(tmp_path: Path, membership: str, files: dict[str, str]) -> None:
    assert memory(tmp_path, membership, files) == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert limits.memory_limit(tmp_path / "cgroup", tmp_path / "sys") == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000"}, 4.0),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, None),
        (
            "3:cpu,cpuacct:/j\n",
            {"cpu,cpuacct/j/cpu.cfs_quota_us": "50000", "cpu,cpuacct/j/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("3:cpu,cpuacct:/j\n", {"cpu/j/cpu.cfs_quota_us": "200000", "cpu/j/cpu.cfs_period_us": "100000"}, 2.0),
        ("3:cpu:/j\n", {"cpu/j/cpu.cfs_quota_us": "-1", "cpu/j/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_limit_of_cpu_time(tmp_path: Path, membership: str, files: dict[str, str], expected: float | None) -> None:
    (tmp_path / "cgroup").write_text(membership)
    where = tmp_path / "cgroup", tree(tmp_path / "sys", files)
    assert limits.cpu_limit(*where) == expected
    cores = limits.usable_cores(membership=where[0], trees=where[1])
    assert cores == (
        max(1, min(len(os.sched_getaffinity(0)), int(expected))) if expected else len(os.sched_getaffinity(0))
    )


def test_memory_and_other_ranks_bound_the_threads_that_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 64)
    monkeypatch.setattr(threads, "available_memory", lambda: 4096 * MIB)
    assert threads.decoding_threads() == 4096 // 4 // 128
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert threads.decoding_threads() == 2
    monkeypatch.setattr(threads, "available_memory", lambda: 0)
    assert threads.decoding_threads() == 1


def test_memory_bounds_the_batches_that_are_decoded_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "available_memory", lambda: 4096 * MIB)
    assert threads.jobs_ahead(64, 1 << 10) == threads.BATCHES_AHEAD
    assert threads.jobs_ahead(1, 1 << 10) >= 2 * threads.PIECE
    assert threads.jobs_ahead(512, 1 << 20) == 2
    assert threads.jobs_ahead(5120, 1 << 20) == 1


@pytest.fixture
def real_group() -> Iterator[Path]:
    """A control group of version 1 or 2 with 512 MiB."""
    need(root=True)
    name = f"trainlaunch-test-{os.getpid()}"
    for parent, file in [(limits.TREES, "memory.max"), (limits.TREES / "memory", "memory.limit_in_bytes")]:
        if not (parent / "cgroup.procs").exists():  # the trees of version 1 hang in a common folder that is none
            continue
        with suppress(OSError):
            (parent / name).mkdir()
            try:
                if (parent / name / file).exists():
                    (parent / name / file).write_text(str(512 * MIB))
                    yield parent / name
                    return
            finally:
                (parent / name).rmdir()
    pytest.skip("no control group can be made here")


def test_a_real_control_group(real_group: Path) -> None:
    program = "from trainlib.runs.machine import limits; print(limits.memory_limit(), limits.available_memory())"
    script = f'echo $$ > {real_group}/cgroup.procs; exec "$0" -c "$1"'
    done = subprocess.run(["sh", "-c", script, sys.executable, program], capture_output=True, text=True, check=True)
    limit, available = map(int, done.stdout.split())
    assert limit == 512 * MIB
    assert 300 * MIB < available < 512 * MIB
