"""Small files that survive a crash: replaced whole, or appended to a line at a time."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on


def timestamp() -> str:
    """Now, as ISO 8601 in UTC to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class DurableFile(io.BufferedWriter):
    """A new file that is on disk when the `with` block is left; knows its size and SHA-256 by then."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path, "w"))
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, data: Buffer) -> int:
        self._digest.update(data)
        self._size += memoryview(data).nbytes
        return super().write(data)

    @property
    def facts(self) -> dict[str, int | str]:
        return {"size": self._size, "sha256": self._digest.hexdigest()}

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        try:
            if error is None:
                self.flush()
                os.fsync(self.fileno())
        finally:
            self.raw.close()  # not self.close(): after an error, what is still buffered must not be tried again


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk: a file in it that was made or renamed is then there after a power cut.

    Does nothing on file systems that do not do this for directories.
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
    """Replace a file so that a reader, or a crash, sees the old content or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with DurableFile(temporary) as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):  # on a full disk, half a file would only take more room
            temporary.unlink()
        raise
    sync_directory(path.parent)


def to_json(record: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON, which has no NaN and no infinity: they become null, at any depth."""
    return json.dumps(_finite(record), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line and flush it to disk; a line that a crash cut off before it is ended first."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
            file.write(b"\n" if torn else b"")
        file.write(to_json(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is none, or no whole one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return record if isinstance(record, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line; lines that a crash cut off are passed over."""
    return parse_lines(path.read_text(encoding="utf-8", errors="replace")) if path.exists() else []


def parse_lines(text: str) -> list[dict[str, Any]]:
    """The JSON objects of a text, one a line; lines that are not whole are passed over."""
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
