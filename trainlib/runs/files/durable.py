"""Files that are written so that a crash, or a full disk, leaves the old content or the new one whole."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")


class DurableFile(io.BufferedWriter):
    """A new file that is flushed to disk when its `with` block ends, with its size and SHA-256.

    Raises FileExistsError where there is anything of this name already, a link included.
    """

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path, "x"))
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: Buffer) -> int:
        """Append bytes; return how many."""
        self._digest.update(data)
        self._size += memoryview(data).nbytes
        return super().write(data)

    @property
    def facts(self) -> dict[str, int | str]:
        """Return the size in bytes and the SHA-256 of what was written."""
        return {"size": self._size, "sha256": self._digest.hexdigest()}

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        try:
            if error is None:
                self.flush()
                os.fsync(self.fileno())
        finally:
            self.raw.close()  # not self.close(): after an error, what is still buffered must not be tried again


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk, so that a file made or renamed in it is there after a power cut.

    Do nothing on file systems that cannot flush directories.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file so that a reader, or a crash, sees the old content or the new one and nothing between.

    A link at `path` is replaced, not followed. Nobody can guess the temporary name and put a link there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with DurableFile(temporary) as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):  # on a full disk, half a file would only take more room
            temporary.unlink()
        raise
    sync_directory(path.parent)


def remove_temporary(directory: Path) -> None:
    """Remove what `write_atomically` left in a folder when it was killed; the caller lets nobody else write there."""
    for entry in os.scandir(directory):
        if _TEMPORARY.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.path)


def part_appended(directory: Path) -> None:
    """Give each file of lines in a folder that has another name, too, as in a backup of hard links, bytes of its own.

    What is appended here must not appear there. The caller lets nobody else write here.
    """
    for entry in os.scandir(directory):
        is_file = entry.name.endswith(".jsonl") and entry.is_file(follow_symlinks=False)
        if is_file and entry.stat().st_nlink > 1:
            write_atomically(Path(entry.path), Path(entry.path).read_bytes())
