"""Copies of small files, which are put back, with their times, when a start is refused."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from trainlib.platform.regular_files import read_regular
from trainlib.runs.files.durable import write_atomically

_MOST_BYTES = 1 << 26  # of one file


class FileBackup:
    """The bytes and times of some files, as they are when this is made. Those that are missing stay as they become."""

    def __init__(self, paths: Iterable[Path]):
        self._files: dict[Path, tuple[bytes, os.stat_result]] = {}
        for path in paths:
            with suppress(OSError):  # there is none, or it is no regular file
                self._files[path] = read_regular(path, _MOST_BYTES), path.stat()

    def __bool__(self) -> bool:
        return bool(self._files)

    def restore(self) -> None:
        """Write each file that was changed or removed since; leave the others."""
        for path, (content, status) in self._files.items():
            if path.parent.is_dir() and not _is_same(path, content, status):
                write_atomically(path, content)
                path.chmod(status.st_mode & 0o7777)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _is_same(path: Path, content: bytes, status: os.stat_result) -> bool:
    with suppress(OSError):
        return path.stat().st_mtime_ns == status.st_mtime_ns and read_regular(path, _MOST_BYTES) == content
    return False
