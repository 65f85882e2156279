"""One process at a time, also across the processes of one training."""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainlib.errors import StoppedError

POLL_SECONDS = 0.1

logger = logging.getLogger("trainlib.data")


@contextmanager
def exclusive_lock(path: Path, *, stop_requested: Callable[[], bool], delay: float = 0.0) -> Iterator[None]:
    """Hold the lock file at `path`; the system lets go of it when the process ends, however it ends.

    delay   seconds to wait before the first try, for those who should let another process go first
    Raises StoppedError when asked to stop while waiting, and OSError where the file or its lock cannot be had.
    """
    with path.open("a") as file:
        time.sleep(delay)
        waited = False
        while not _try_lock(file.fileno()):
            if not waited:
                logger.info("Waiting for another process, which prepares the data (%s).", path)
            waited = True
            if stop_requested():
                raise StoppedError(
                    f"Stopped while another process prepared the data ({path}), before training began. Run again."
                )
            time.sleep(POLL_SECONDS)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
