"""Locks on files: one holder, released by a kill, of the file that is at the path, and looked at without a trace."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import pytest

from trainlib.errors import StoppedError
from trainlib.runs.files.locks import acquire, exclusive_lock, is_locked

HOLDER = """\
import sys, time
from pathlib import Path
from trainlib.runs.files.locks import acquire
lock = acquire(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(3600)
"""


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "made/on/the/way/lock"
    assert not is_locked(path)
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(path)
        with pytest.raises(BlockingIOError):
            acquire(path, seconds=0.2)
        holder.kill()
        holder.wait()
        assert not is_locked(path)
        acquire(path, seconds=0.0).close()


def test_a_lock_is_released_when_its_file_is_closed(tmp_path: Path) -> None:
    lock = acquire(tmp_path / "lock")
    assert is_locked(tmp_path / "lock")
    lock.close()
    assert not is_locked(tmp_path / "lock")


def test_the_lock_is_that_of_the_file_at_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--fresh` renames the run directory between the moment in which its lock file is opened and that of the lock."""
    path = tmp_path / "run/lock"
    path.parent.mkdir()
    lock_of_system = fcntl.flock

    def flock(file: TextIO, operation: int) -> None:
        if not (tmp_path / "run.old-1").exists():
            path.parent.rename(tmp_path / "run.old-1")
        lock_of_system(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with acquire(path) as lock:
        assert os.path.samestat(os.fstat(lock.fileno()), path.stat())


def test_looking_at_a_lock_needs_only_the_right_to_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test as root cannot see this by permissions: the lock is shared, and the file is opened for reading."""
    path = tmp_path / "lock"
    path.touch()
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        fcntl, "flock", lambda file, how: asked.append((how, fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE))
    )
    assert not is_locked(path)
    assert asked == [(fcntl.LOCK_SH | fcntl.LOCK_NB, os.O_RDONLY)]


def test_without_locks_an_error_tells_and_nothing_counts_as_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: TextIO, operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="no locks available"):
        acquire(tmp_path / "lock")
    assert not is_locked(tmp_path / "lock")


def test_waiting_for_prepared_data_ends_when_asked_to_stop(tmp_path: Path) -> None:
    asked: list[float] = []

    def stop_requested() -> bool:
        asked.append(time.monotonic())
        return len(asked) == 3

    with (
        acquire(tmp_path / "lock"),
        pytest.raises(StoppedError, match="another process prepared"),
        exclusive_lock(tmp_path / "lock", stop_requested=stop_requested),
    ):
        pytest.fail("two processes prepare the same data")
    assert len(asked) == 3
