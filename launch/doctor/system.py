"""Check of the machine: cores, memory, limits of a process, shared memory."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from launch.doctor.finding import Finding, note, ok
from trainlib.runs.machine.limits import available_memory, memory_limit, usable_cores

GIB = 1 << 30
SHARED_MEMORY = Path("/dev/shm")
INFINIBAND = Path("/sys/class/infiniband")
_LEAST_FILES = 1024
_LEAST_SHARED = 1 * GIB  # NCCL takes some for every pair of GPUs; Docker gives 64 MiB


def check_system() -> Iterator[Finding]:
    """Check cores, memory, the limits of a process that training may reach, and /dev/shm."""
    import psutil

    physical, logical = psutil.cpu_count(logical=False), psutil.cpu_count()
    memory, limit = psutil.virtual_memory(), memory_limit()
    text = (
        f"{physical} cores, {logical} hardware threads, {usable_cores()} of them for this process; "
        f"{memory.total / GIB:.0f} GiB of memory, {available_memory() / GIB:.0f} free"
    )
    if limit < memory.total:
        text += f"; this container or job may have {limit / GIB:.1f} GiB"
    yield ok("machine", text)
    yield limits(
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        has_infiniband=INFINIBAND.is_dir() and any(INFINIBAND.iterdir()),
    )
    if SHARED_MEMORY.is_dir():
        yield shared_memory(_size(SHARED_MEMORY))


def limits(files: int, locked_bytes: int, *, has_infiniband: bool) -> Finding:
    """Return the finding about the limits of open files and of locked memory, which InfiniBand needs unlimited."""
    locked = "unlimited" if locked_bytes == resource.RLIM_INFINITY else f"{locked_bytes // 1024} KiB"
    opened = "unlimited" if files == resource.RLIM_INFINITY else str(files)
    text = f"{opened} open files, {locked} of locked memory"
    if 0 <= files < _LEAST_FILES:
        return note("limits", text, f"ulimit -n {_LEAST_FILES}: fewer may not do for many processes")
    if has_infiniband and locked_bytes != resource.RLIM_INFINITY:
        return note(
            "limits", text, "ulimit -l unlimited, on all nodes: InfiniBand locks memory, and NCCL fails or falls back"
        )
    return ok("limits", text)


def shared_memory(size: int) -> Finding:
    """Return the finding about /dev/shm, through which the processes of one machine exchange gradients.

    size   in bytes
    """
    text = f"{size / GIB:.1f} GiB" if size >= GIB else f"{size >> 20} MiB"
    if size < _LEAST_SHARED:
        advice = "several GPUs need more: docker run --shm-size=1g (or --ipc=host)"
        return note("/dev/shm", text, advice)
    return ok("/dev/shm", text)


def _size(path: Path) -> int:
    facts = os.statvfs(path)
    return facts.f_frsize * facts.f_blocks
