"""Where a rank's words go: rank 0 to the console and its log, every other rank to its own log alone."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TextIO

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Stdout(logging.StreamHandler[TextIO]):
    """Prints to whatever sys.stdout is at the moment: a live progress bar puts itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self, logging.INFO)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


def log_to_console() -> None:
    """News and warnings of this package on standard output, in the fewest words. For the program, not for a library."""
    handler = _Stdout()
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("trainlib")
    package.setLevel(logging.DEBUG)
    package.addHandler(handler)
    package.propagate = False


def log_rank(directory: Path, rank: int) -> TextIO:
    """From here on, write this rank's log `rank-<rank>.log` too; returns the open log.

    Ranks other than 0 send all that they print there, tracebacks and the words of C libraries included.
    """
    path = directory / f"rank-{rank}.log"
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, is no reason to end
    if rank == 0:
        file = path.open("a", buffering=1)
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter(FORMAT))
        logging.getLogger("trainlib").addHandler(handler)
        return file
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return sys.stderr
