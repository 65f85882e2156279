"""The files of one run directory, for those who look at it: nothing in there is trusted, and what is wrong is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from trainlib.errors import ConfigError
from trainlib.platform.regular_files import open_regular, read_regular, read_tail
from trainlib.runs.files.json_records import (
    LINES_BYTES,
    RECORD_BYTES,
    Fits,
    Lines,
    Record,
    anything,
    parse_lines,
    parse_record,
)
from trainlib.runs.terminal.printable import printable

TEXT_BYTES = 1 << 18  # of a file that is shown as it is
_MOST_FILES = 1000  # of one kind

_Found = TypeVar("_Found")


class RunFiles:
    """Reads files by their names in a run directory; a missing one is empty, and so is one that cannot be read.

    there      the names in the directory, where they are known: to open what is missing takes time
    problems   a sentence for each file that is damaged, or is no regular file inside the directory
    """

    def __init__(self, directory: Path, there: Collection[str] | None = None):
        self.directory = directory
        self.problems: list[str] = []
        self._there = there

    def lines(self, name: str, fits: Fits = anything) -> list[Record]:
        """Return the records of a file of JSON lines; of a very long one only the newest."""

        def read(path: Path) -> list[Record]:
            content, left_out = read_tail(path, LINES_BYTES, within=self.directory)
            if left_out:
                self.problems.append(f"{name}: only its last {LINES_BYTES >> 20} MB are read")
                content = content[content.find(b"\n") + 1 :]
            found = parse_lines(content, fits)
            self._tell_damaged(name, found)
            return found.records

        return self._tried(name, read) or []

    def end(self, name: str, limit: int) -> tuple[bytes, int]:
        """Return the last `limit` bytes of a file, and the number of bytes before them."""
        return self._tried(name, lambda path: read_tail(path, limit, within=self.directory)) or (b"", 0)

    def record(self, name: str, fits: Fits = anything) -> Record:
        """Return the JSON object in a file."""
        return (
            self._tried(name, lambda path: parse_record(read_regular(path, RECORD_BYTES, within=self.directory), fits))
            or {}
        )

    def config(self) -> Record:
        """Return the values in config.yaml, which need not be a valid configuration of this version."""
        from trainlib.config.reading.yaml_source import read_file  # takes time, and `launch list` does without it

        def read(path: Path) -> Record:
            try:
                return read_file(path, path.name, links=False).values
            except ConfigError as error:
                raise ValueError(str(error).partition("\n")[0].removeprefix(f"{path.name}: ")) from error

        return (self._tried("config.yaml", read) if os.path.lexists(self.directory / "config.yaml") else None) or {}

    def text(self, name: str) -> str:
        """Return a file's text, with a replacement character for each byte that is no UTF-8."""
        content = self._tried(name, lambda path: read_regular(path, TEXT_BYTES, within=self.directory))
        return (content or b"").decode("utf-8", errors="replace")

    def end_of_text(self, name: str) -> str:
        """Return the last TEXT_BYTES of a file's text, as `text` does the whole of it."""
        return self.end(name, TEXT_BYTES)[0].decode("utf-8", errors="replace")

    def open(self, name: str) -> int | None:
        """Return a descriptor to read a file with, None where it cannot be opened."""
        return self._tried(name, lambda path: open_regular(path, within=self.directory))

    def names(self, pattern: str) -> list[str]:
        """Return the names of the files that match a pattern such as `logs/node-*.json`, sorted."""
        folder = (self.directory / pattern).parent
        if folder != self.directory and folder.is_symlink():
            self.problems.append(f"{folder.name}: is a link, must be a folder")
            return []
        found = sorted(path.relative_to(self.directory).as_posix() for path in self.directory.glob(pattern))
        return found[:_MOST_FILES]

    def _tell_damaged(self, name: str, found: Lines) -> None:
        if found.damaged:
            more = f" and {found.damaged - len(found.problems)} more" if found.damaged > len(found.problems) else ""
            what = "1 line is damaged" if found.damaged == 1 else f"{found.damaged} lines are damaged"
            self.problems.append(f"{name}: {what} and left out ({'; '.join(found.problems)}{more})")

    def _tried(self, name: str, read: Callable[[Path], _Found]) -> _Found | None:
        """Return what `read` makes of the file; None, and a problem where there is such a file, if it raises."""
        if self._there is not None and name.partition("/")[0] not in self._there:
            return None
        try:
            return read(self.directory / name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.problems.append(printable(f"{name}: {reason}"))
            return None
