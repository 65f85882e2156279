"""Standard input, output and error of a program, made safe against being closed, full, or without a reader.

A closed one is replaced by /dev/null: else the next file that is opened, a log or a checkpoint, would get its number,
and all that is printed would go into that file. One that cannot be written, like a pipe whose reader has gone, ends a
program that only shows something, and is left alone by one that trains, whose logs have everything.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn, TextIO

from trainlib.errors import EXIT_FAILURE, EXIT_USER_ERROR, not_permitted
from trainlib.runs.terminal.printable import print_error

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on

EXIT_PIPE = 141  # 128 + SIGPIPE: as `ls | head` ends, which says nothing
_DECODERS = "trainlib.data.pictures.decoding.threads"  # looked at where it was imported, which is a slow import
_NAMES = {1: "standard output", 2: "standard error"}


class OutputLostError(Exception):
    """Standard output cannot be written: no program's own matter, so that only its outermost frame catches it."""

    def __init__(self, descriptor: int, reason: OSError):
        super().__init__(f"{_NAMES[descriptor]} cannot be written: {reason.strerror}")
        self.reader_is_gone = reason.errno == errno.EPIPE

    def end(self) -> int:
        """Tell about it, unless a reader has only seen enough; return the exit code."""
        if self.reader_is_gone:
            return EXIT_PIPE
        with suppress(OSError):
            print(f"error: {self}", file=sys.stderr)
        return EXIT_FAILURE


class _Descriptor(io.FileIO):
    """File descriptor 1 or 2, which leads to /dev/null from the first failure on."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)
        self.needed = True  # a failure ends the program

    def write(self, data: Buffer) -> int:
        """Write bytes and return how many; raise OutputLostError if they are lost and needed."""
        try:
            return super().write(data)
        except BlockingIOError:
            raise
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())  # for what is still in buffers, C libraries and other processes
            os.close(null)
            if self.needed:
                raise OutputLostError(self.fileno(), error) from error
            if self.fileno() == 1:
                with suppress(OSError):
                    os.write(2, f"warning: {OutputLostError(1, error)}; logs go on in the run directory\n".encode())
        return memoryview(data).nbytes


def secure_streams() -> None:
    """Make this process's standard streams safe. For programs, before they open any file."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is given, so it is this one.
            assert os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY) == descriptor
            os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 - for the life of the process
    sys.stdout = _secured(sys.stdout, 1)
    sys.stderr = _secured(sys.stderr, 2)


def keep_running_without_readers() -> None:
    """Let this process go on from now on where its output cannot be written any more."""
    for stream in (sys.stdout, sys.stderr):
        raw = getattr(getattr(stream, "buffer", None), "raw", None)
        if isinstance(raw, _Descriptor):
            raw.needed = False


def flush_streams() -> None:
    """Write what is still buffered. Raises OutputLostError where that is lost."""
    sys.stdout.flush()
    sys.stderr.flush()


def end_program(main: Callable[[], int]) -> NoReturn:
    """Run the `main` of a program with safe streams, and exit with its code."""
    secure_streams()
    try:
        code = main()
        flush_streams()
    except OutputLostError as error:
        code = error.end()
    except PermissionError as error:
        print_error(not_permitted(error))
        code = EXIT_USER_ERROR
    leave(code)


def leave(code: int, *, at_once: bool = False) -> NoReturn:
    """Exit with this code, also where a decoder of pictures does not return.

    Threads that C++ still runs would abort the process while the interpreter ends.

    at_once   True where there are such threads
    """
    decoders = sys.modules.get(_DECODERS)
    if at_once or (decoders is not None and not decoders.are_decoders_idle()):
        with suppress(OutputLostError):
            flush_streams()
        os._exit(code)
    sys.exit(code)


def _secured(stream: TextIO | None, descriptor: int) -> io.TextIOWrapper:
    """Return a text stream on the descriptor that is like the one that Python has made for it."""
    if stream is not None:
        stream.flush()
    raw = _Descriptor(descriptor)
    if descriptor == 2:
        raw.needed = False  # there is no way left to tell anything
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=getattr(stream, "encoding", None) or "utf-8",
        errors="backslashreplace",  # a name that is not in this encoding is no reason to end
        line_buffering=descriptor == 2 or bool(getattr(stream, "line_buffering", False)),
        write_through=bool(getattr(stream, "write_through", False)),
    )


def read_line() -> str:
    """Return one line of standard input, read without reading ahead, so that `select` tells whether there is more."""
    line = b""
    while (byte := os.read(sys.stdin.fileno(), 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()
