"""Where a rank's words go: rank 0 to the console and its log, every other rank to its own log alone."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from trainlib.errors import ConnectionLostError, RunDirectoryError

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _File(logging.StreamHandler[TextIO]):
    """A log that cannot be written, on a full disk, is no reason to end or to complain at every line."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Let the line go."""


class _Stdout(logging.StreamHandler[TextIO]):
    """Prints to whatever sys.stdout is at the moment: a live progress bar puts itself in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self, logging.INFO)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stdout


@contextmanager
def logging_to_console() -> Iterator[None]:
    """News and warnings of this package on standard output, in the fewest words. For the program, not for a library."""
    handler = _Stdout()
    handler.setFormatter(logging.Formatter("%(message)s"))
    with _added(handler):
        yield


@contextmanager
def logging_to_file(path: Path) -> Iterator[TextIO]:
    """The same, and an error that ends the block, in a file with times; the open file.

    Raises RunDirectoryError when it cannot be opened.
    """
    try:
        opened = path.open("a", buffering=1)
    except OSError as error:
        raise RunDirectoryError(f"{path}: cannot be written ({error.strerror}): mend it, or remove it") from error
    with opened as file:
        handler = _File(file)
        handler.setFormatter(logging.Formatter(FORMAT))
        try:
            with _added(handler):
                yield file
        except BaseException as error:
            with suppress(OSError):
                # What another rank did is not to be found in this one's stack.
                lost = isinstance(error, ConnectionLostError)
                file.write(f"{error}\n" if lost else traceback.format_exc())
            raise


def attempt_header(number: int, environ: Mapping[str, str]) -> str:
    """The line that begins an attempt in each rank's log, to which all attempts append."""
    job = slurm_job(environ)
    where = f", job {job} restart {environ.get('SLURM_RESTART_COUNT') or 0}" if job else ""
    return f"=== attempt {number}{where} ===\n"


def slurm_job(environ: Mapping[str, str]) -> str | None:
    """The SLURM job that this runs in, as the queue names it: `123`, or `123_4` for element 4 of an array."""
    if environ.get("SLURM_ARRAY_TASK_ID"):
        return f"{environ.get('SLURM_ARRAY_JOB_ID')}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")


def redirect_output(path: Path, header: str = "") -> None:
    """All that this process prints goes to the file from now on, tracebacks and the words of C libraries included."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with suppress(OSError):  # on a full disk; not through sys.stdout, which would try it again at the end
        os.write(log, header.encode())
    os.close(log)


@contextmanager
def _added(handler: logging.Handler) -> Iterator[None]:
    package = logging.getLogger("trainlib")
    before = package.level
    package.setLevel(logging.DEBUG)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(before)
