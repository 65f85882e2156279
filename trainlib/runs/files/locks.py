"""Locks on files, between processes. The system releases a lock when its holder ends, however that happens.

They are BSD locks (flock), also of a process on another node where the file system passes them on: NFS 4, GPFS, and
Lustre mounted with `flock`. docs/decisions/0014-locks.md says why this is no library.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from trainlib.errors import StoppedError
from trainlib.platform.regular_files import open_regular

POLL_SECONDS = 0.05

logger = logging.getLogger("trainlib.runs")


def acquire(path: Path, *, seconds: float = math.inf, on_wait: Callable[[], None] = lambda: None) -> TextIO:
    """Lock the file at `path`, which is made where it is missing; return it open: closing it releases the lock.

    The file is still the one at `path` when this returns, even where another process renames the folder meanwhile.
    seconds   how long to try, at the least; after that, raise BlockingIOError
    on_wait   called before each pause; may raise to give up
    Raises OSError where the file or its lock cannot be had.
    """
    deadline = time.monotonic() + seconds
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if (file := _try_lock(path)) is not None:
                return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        on_wait()
        time.sleep(POLL_SECONDS)


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock on this file. Nothing is written, so that anybody may ask."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks, where nothing trains either
        return False
    return False


@contextmanager
def exclusive_lock(path: Path, *, stop_requested: Callable[[], bool], delay: float = 0.0) -> Iterator[None]:
    """Context manager: hold the lock file of prepared data, so that one process prepares it and the others wait.

    delay   seconds to wait before the first try, for processes that should let another one go first
    Raises StoppedError when asked to stop while waiting, and OSError where the file or its lock cannot be had.
    """
    told = False

    def on_wait() -> None:
        nonlocal told
        if not told:
            logger.info("Waiting for another process, which prepares the data (%s).", path)
        told = True
        if stop_requested():
            raise StoppedError(
                f"Stopped while another process prepared the data ({path}), before training began. Run again."
            )

    time.sleep(delay)
    with acquire(path, on_wait=on_wait):
        yield


def _try_lock(path: Path) -> TextIO | None:
    """Lock the file at once and return it open, or None where the path meanwhile leads to another file.

    Raises BlockingIOError where another process holds the lock.
    """
    with ExitStack() as stack:
        file = stack.enter_context(path.open("a+"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                stack.pop_all()  # it stays open
                return file
    return None
