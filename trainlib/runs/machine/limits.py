"""The memory and the CPU cores that this process may use: what the machine has, and what its control groups allow.

A container, or a job of SLURM, is a control group (cgroup) of Linux with limits of its own; the groups around it may
have lower ones. Both versions are read: in version 2 all of a group's files are in one folder, in version 1 there is a
tree for each of `memory` and `cpu`. Nothing here is remembered, as limits may be changed while a process runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")  # cgroups(7): lines `number:controllers:path`
TREES = Path("/sys/fs/cgroup")
_CACHE_V1 = ("total_inactive_file", "total_active_file")  # of memory.stat: what the kernel can take back from files
_CACHE_V2 = ("inactive_file", "active_file")


def available_memory(membership: Path = MEMBERSHIP, trees: Path = TREES) -> int:
    """Return how many bytes of memory can still be taken: on the machine, and in every control group around here."""
    import psutil

    rooms = [
        limit - used
        for folder in _groups("memory", membership, trees)
        for limit, used in [*_memory_v2(folder), *_memory_v1(folder)]
    ]
    return max(0, min([psutil.virtual_memory().available, *rooms]))


def memory_limit(membership: Path = MEMBERSHIP, trees: Path = TREES) -> int:
    """Return the bytes of memory that this process and those in its control group may have together."""
    import psutil

    limits = [
        limit
        for folder in _groups("memory", membership, trees)
        for limit, _ in [*_memory_v2(folder), *_memory_v1(folder)]
    ]
    return min([psutil.virtual_memory().total, *limits])


def usable_cores(*, physical: bool = False, membership: Path = MEMBERSHIP, trees: Path = TREES) -> int:
    """Return the number of CPU cores that this process may use, at least 1; a limit of CPU time is rounded down.

    physical   count physical cores, of which each may run several hardware threads
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if physical:
        import psutil

        cores = min(cores, psutil.cpu_count(logical=False) or 1)
    limit = cpu_limit(membership, trees)
    return max(1, cores if limit is None else min(cores, int(limit)))


def cpu_limit(membership: Path = MEMBERSHIP, trees: Path = TREES) -> float | None:
    """Return the limit of CPU time, in cores, of the control groups around this process; None without a limit."""
    limits = [
        quota / period
        for folder in _groups("cpu", membership, trees)
        for quota, period in [
            (_number(folder / "cpu.max"), _number(folder / "cpu.max", 1)),
            (_number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")),
        ]
        if quota is not None and period is not None and quota > 0 and period > 0
    ]
    return min(limits, default=None)


def _groups(controller: str, membership: Path, trees: Path) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all around it, in each tree that has the controller.

    In a container a group's path may be one of the host's, which is not to be seen there; the top of the tree then is
    the container's own group.
    """
    with suppress(OSError, ValueError):
        for line in membership.read_text(errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                tops = [trees, trees / "unified"]
            elif controller in controllers.split(","):
                tops = [trees / controllers, trees / controller]
            else:
                continue
            parts = [part for part in path.split("/") if part not in ("", "..")]
            for top in tops:
                for depth in range(len(parts), -1, -1):
                    yield top.joinpath(*parts[:depth])


def _memory_v2(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes used and not to be taken back) of a group of version 2; memory.high slows it to a halt."""
    for name in ("memory.max", "memory.high"):
        limit, used = _number(folder / name), _number(folder / "memory.current")
        if limit is not None and used is not None:
            yield limit, used - _cached(folder, _CACHE_V2)


def _memory_v1(folder: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, bytes used and not to be taken back) of a group of version 1, where a huge number is no limit."""
    limit, used = _number(folder / "memory.limit_in_bytes"), _number(folder / "memory.usage_in_bytes")
    if limit is not None and used is not None and limit < 1 << 60:
        yield limit, used - _cached(folder, _CACHE_V1)


def _cached(folder: Path, names: tuple[str, str]) -> int:
    with suppress(OSError, ValueError):
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(value) for name, value in pairs if name in names)
    return 0


def _number(path: Path, position: int = 0) -> int | None:
    """Return a whole number of a file, by its position in the line; None where it is missing, or is no number."""
    with suppress(OSError, ValueError, IndexError):
        return int(path.read_text().split()[position])
    return None
