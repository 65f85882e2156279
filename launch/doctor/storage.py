"""Check of a folder for runs: room, speed, and the promises of its file system that checkpoints rely on."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from launch.doctor.finding import Finding, note, ok, problem
from trainlib.runs.machine.file_systems import SHARED, file_system_here

GIB = 1 << 30
_IN_MEMORY = {"tmpfs", "ramfs"}
_CHUNK = bytes(4 << 20)
_WRITE_SECONDS, _WRITE_BYTES = 1.0, 64 << 20
_SLOW_BYTES_PER_SECOND = 50e6
_RENAMES = 100
_CLOCK_SECONDS = 2.0


def check_storage(topic: str, folder: Path) -> Iterator[Finding]:
    """Check that the folder, or the one in which it would be made, can be written, and how fast."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing) as scratch:
            yield _speed(topic, folder, Path(scratch))
            yield from _file_system_faults(topic, Path(scratch))
    except OSError as error:
        advice = {
            errno.ENOSPC: "make room: a training stops when it cannot write its checkpoints",
            errno.EDQUOT: "your quota is used up: make room, or ask for more",
        }.get(error.errno or 0, "mend its permissions, or change to a folder that you may write to")
        yield problem(topic, f"{folder.absolute()} cannot be written: {error.strerror}", advice)


def _speed(topic: str, folder: Path, scratch: Path) -> Finding:
    free = shutil.disk_usage(scratch).free
    kind = file_system_here(scratch)
    speed = _bytes_per_second(scratch / "speed")
    text = (
        f"{folder.absolute()} on {kind}{' (shared)' if kind in SHARED else ''}: {free / GIB:.1f} GiB free, "
        f"writes {speed / 1e6:,.0f} MB/s to disk"
    )
    if free < GIB:
        return problem(topic, text, "make room: a checkpoint of a VGG16 takes 1.1 GB")
    if kind in _IN_MEMORY:
        return note(topic, text, "what is here is in memory, and gone when the machine restarts")
    if free < 10 * GIB:
        return note(topic, text, "little room: each checkpoint of a VGG16 takes 1.1 GB")
    if speed < _SLOW_BYTES_PER_SECOND:
        return note(
            topic, text, f"slow: a VGG16's checkpoint of 1.1 GB takes {1.1e9 / speed:.0f} s; train longer between"
        )
    return ok(topic, text)


def _file_system_faults(topic: str, scratch: Path) -> Iterator[Finding]:
    """Check renames, locks and the clock; there is a finding only where one is not as it should be."""
    if not renames_are_atomic(scratch):
        yield problem(topic, "a file is gone for a moment while it is replaced", "keep runs/ on another file system")
    if (lock_error := lock_fault(scratch / "lock")) is not None:
        yield problem(
            topic,
            f"files cannot be locked here ({lock_error}): two processes might train into one run directory",
            "keep runs/ elsewhere, or have it mounted with locks (NFS: not with nolock; Lustre: with flock)",
        )
    skew = (scratch / "lock").stat().st_mtime - time.time()
    if abs(skew) > _CLOCK_SECONDS:
        yield note(topic, f"its server's clock is {skew:+.0f} s from this machine's", "have both synchronise (NTP)")


def renames_are_atomic(folder: Path) -> bool:
    """Return True if a reader always finds the file whole while it is replaced again and again."""
    target, other = folder / "renamed", folder / "replacement"
    texts = [b"a" * 4096, b"b" * 4096]
    target.write_bytes(texts[0])
    seen: set[bytes | None] = set()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                seen.add(target.read_bytes())
            except OSError:
                seen.add(None)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for index in range(_RENAMES):
            other.write_bytes(texts[index % 2])
            other.replace(target)
    finally:
        over.set()
        reader.join()
    return seen <= set(texts)


def lock_fault(path: Path) -> str | None:
    """Return the fault of locks on this file, None where one process's lock keeps another out."""
    import fcntl

    with path.open("w") as first, path.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return str(error.strerror)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        except OSError as error:
            return str(error.strerror)
    return "a second lock was given"


def _bytes_per_second(path: Path) -> float:
    """Return the speed at which new bytes reach the disk, flushing included."""
    start, written = time.perf_counter(), 0
    with path.open("wb", buffering=0) as file:
        while written < _WRITE_BYTES and time.perf_counter() - start < _WRITE_SECONDS:
            written += file.write(_CHUNK)
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return written / seconds
