"""Temporary folders of a running process, which the next start removes where a process was killed before it could.

The maker holds a lock on a file in its folder for as long as it lives. Unlike a process number, a lock is not mistaken
for another process's later, or in another container that has the same /dev/shm.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # a file system in memory, where there is one
PREFIX = "trainlaunch-"
_OWNER = "owner"  # the locked file
_STALE_SECONDS = 24 * 3600.0  # folders without that file are somebody's who makes one just now, up to this age


class Scratch:
    """A temporary folder of this process, `path`, for this user alone."""

    def __init__(self, path: Path, lock: int):
        self.path = path
        self._lock = lock

    def remove(self) -> None:
        """Remove the folder. What is open in it, or mapped, stays as long as it is used."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def make_scratch(*, in_memory: bool = True) -> Scratch | None:
    """Make a temporary folder, in memory if that is wanted and possible; None where none can be made.

    Folders that killed processes have left are removed before.
    """
    remove_abandoned()
    with suppress(OSError):
        parent = SHARED_MEMORY if in_memory and os.access(SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))  # others look at it once it is locked
        lock = os.open(hidden / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path = hidden.with_name(hidden.name[1:])
        hidden.rename(path)
        return Scratch(path, lock)
    return None


def remove_abandoned() -> None:
    """Remove this user's folders whose makers are dead, in memory and in the folder for temporary files."""
    parents = {SHARED_MEMORY}
    with suppress(OSError):  # no folder for temporary files
        parents.add(Path(tempfile.gettempdir()))
    for parent in parents:
        with suppress(OSError), os.scandir(parent) as entries:
            for entry in entries:
                if entry.name.startswith((PREFIX, f".{PREFIX}")) and _is_left(entry):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _is_left(entry: os.DirEntry[str]) -> bool:
    """Return True for a folder of this user whose maker is dead."""
    with suppress(OSError):
        facts = entry.stat(follow_symlinks=False)
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            return False
        if time.time() - facts.st_mtime > _STALE_SECONDS and not os.path.lexists(os.path.join(entry.path, _OWNER)):
            return True
        return not entry.name.startswith(".") and lock_is_free(os.path.join(entry.path, _OWNER))
    return False


def lock_is_free(path: str) -> bool:
    """Return True if nobody holds the lock on a regular file; raise OSError where there is none."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
