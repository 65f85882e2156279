"""What the launcher shows and keeps of what its child processes print, and the end of a rank's log."""

from __future__ import annotations

import os
import queue
import re
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from trainlib.platform.regular_files import open_regular, read_tail
from trainlib.runs.terminal.colour import coloured

TAIL_LINES, _TAIL_BYTES = 15, 1 << 16
_ERROR = re.compile(r"(?m)^error:")


class StderrRelay:
    """Shows each line of the child's standard error at once, read on a thread, and keeps it for the log."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the last lines; not for long, as a process that outlives the ranks may hold the pipe."""
        self._thread.join(timeout=5)

    def take_lines(self) -> list[str]:
        """Return the lines that have come since the last call."""
        return [self._lines.get() for _ in range(self._lines.qsize())]

    def _read(self) -> None:
        for line in self._stream:
            self._lines.put(line)
            with suppress(OSError):  # reading must go on where the terminal is gone, or the ranks would block
                sys.stderr.write(line)
                sys.stderr.flush()


def say(words: str) -> None:
    """Print words on standard error, where there is one that can be written."""
    if words:
        with suppress(OSError):
            print(_ERROR.sub(lambda found: coloured(found[0], "red", sys.stderr), words), file=sys.stderr, flush=True)


def append(path: Path, lines: Sequence[str]) -> None:
    """Append lines to a log file; a log that cannot be written is not worth an error."""
    if lines:
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            with os.fdopen(open_regular(path, flags, within=path.parents[1]), "a", encoding="utf-8") as file:
                file.writelines(lines)


def last_lines(path: Path) -> list[str]:
    """Return the last lines of a log file; empty where it cannot be read."""
    try:
        content, _ = read_tail(path, _TAIL_BYTES, within=path.parents[1])
    except OSError:
        return []
    return content.decode("utf-8", errors="replace").splitlines()[-TAIL_LINES:]
