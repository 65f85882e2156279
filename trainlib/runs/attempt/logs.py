"""Logs: rank 0 writes to the console and to its log file, every other rank to its own log file only."""

from __future__ import annotations

import io
import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from trainlib.errors import ConnectionLostError, RunDirectoryError
from trainlib.platform.regular_files import open_regular
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.records.jobs import slurm_job
from trainlib.runs.terminal.printable import encode_anything, printable

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Printable(logging.Formatter):
    """Log formatter that escapes what no terminal should get, as it may stand in the names of files and classes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record, which may have several lines."""
        return printable(super().format(record), keep="\n\t")


class _File(logging.StreamHandler[TextIO]):
    """Log handler for a file that drops the lines that cannot be written, as on a full disk, without an error.

    has_details   True once a line was written that the console does not show
    """

    has_details = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        self.has_details |= record.levelno < logging.INFO
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Drop the line."""


class _Stdout(logging.StreamHandler[TextIO]):
    """Log handler for the current `sys.stdout`, which a live progress bar replaces while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self, logging.INFO)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Return the stream to which the next line goes."""
        return sys.stdout


class LogFile(io.TextIOWrapper):
    """An open log that keeps its lines in memory until `begin` names the file for them and all later ones."""

    def __init__(self) -> None:
        self.has_begun = False
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("log")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        super().__init__(io.FileIO(descriptor, "w"), encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def begin(self, path: Path, header: str) -> None:
        """Append the header, and all that was logged so far, to a file. Raises RunDirectoryError."""
        logged = self.content()
        try:
            file = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError as error:
            raise RunDirectoryError(f"{path}: cannot be written ({error.strerror}): mend it, or remove it") from error
        os.dup2(file, self.fileno())  # for whoever writes to the descriptor as well
        with suppress(OSError):  # a full disk is told where it matters
            os.write(file, header.encode() + logged)
        os.close(file)
        self.has_begun = True

    def content(self) -> bytes:
        """Return what was logged until the log began."""
        self.flush()
        return os.pread(self.fileno(), os.fstat(self.fileno()).st_size, 0)


@contextmanager
def logging_to_console(level: int = logging.INFO) -> Iterator[None]:
    """Context manager: print this package's log lines on standard output, without times. For programs only.

    level   the lowest that is printed; `redirect_output` lowers it to INFO
    """
    encode_anything()
    handler = _Stdout()
    handler.setLevel(level)
    handler.setFormatter(_Printable("%(message)s"))
    with _added(handler):
        yield


@contextmanager
def logging_to_file(refused: Path | None = None) -> Iterator[LogFile]:
    """Context manager: write this package's log lines, with times, to a log, which it returns open.

    An exception that ends the block is written as well.
    refused   the file for a log that has not begun then, if it tells more than the console did
    """
    with LogFile() as file:
        handler = _File(file)
        handler.setFormatter(_Printable(FORMAT))
        try:
            with _added(handler):
                yield file
        except BaseException as error:
            with suppress(OSError):
                # What another rank did is not to be found in this one's stack.
                lost = isinstance(error, ConnectionLostError)
                file.write(printable(f"{error}\n" if lost else traceback.format_exc(), keep="\n\t"))
                if refused is not None and handler.has_details and not file.has_begun:
                    refused.parent.mkdir(exist_ok=True)
                    write_atomically(refused, file.content())
            raise


def attempt_header(number: int, environ: Mapping[str, str]) -> str:
    """Return the line that begins an attempt in each rank's log, a file to which all attempts append."""
    job = slurm_job(environ)
    where = f", job {job} restart {environ.get('SLURM_RESTART_COUNT') or 0}" if job else ""
    return f"=== attempt {number}{where} ===\n"


def redirect_output(path: Path, header: str = "") -> None:
    """Write all that this process prints from now on to a file, tracebacks and output of C libraries included.

    header   written first
    """
    sys.stdout.flush()
    sys.stderr.flush()
    log = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with suppress(OSError):  # on a full disk; not through sys.stdout, which would try it again at the end
        os.write(log, header.encode())
    os.close(log)
    for handler in logging.getLogger("trainlib").handlers:
        if isinstance(handler, _Stdout):
            handler.setLevel(logging.INFO)


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
