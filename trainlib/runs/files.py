"""Small files: written so that a crash leaves them whole, and read so that damage in them does no harm."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on


Record = dict[str, Any]


def timestamp() -> str:
    """Return the time now, as ISO 8601 in UTC to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class DurableFile(io.BufferedWriter):
    """A new file that is flushed to disk when its `with` block ends, with its size and SHA-256."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path, "w"))
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
    """Return a record as JSON, with null for NaN and infinity, which JSON does not have, at any depth."""
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
    """Append a record as one line of JSON and flush it to disk, after ending a line that a crash cut off.

    Lines of several processes do not mix, as each is written by one call.
    """
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
            file.write(b"\n" if torn else b"")
        file.write(to_json(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, *, strict: bool = False) -> list[Record]:
    """Return the JSON objects of a file, one a line; empty where there is no file.

    Lines that are no whole object are left out, as the last one may be while it is being written or after a crash.
    strict   raise OSError for a file that is there but cannot be read, which is otherwise taken for empty
    """
    return parse_lines(_read_text(path, strict))


def parse_lines(text: str) -> list[Record]:
    """Return the JSON objects of a text, one a line; lines that are no whole object are left out."""
    records = (_parse(json.loads, line) for line in text.split("\n"))
    return [record for record in records if record is not None]


def read_json(path: Path, *, strict: bool = False) -> Record:
    """Return the JSON object in a file; empty where there is no file, or no whole object in it.

    strict   as for `read_lines`
    """
    return _parse(json.loads, _read_text(path, strict)) or {}


def read_yaml(path: Path) -> Record:
    """Return the mapping in a YAML file; empty where there is no file that can be read, or no mapping in it."""
    import yaml  # takes time, and `launch list` does without it

    return _parse(yaml.safe_load, _read_text(path)) or {}


def _read_text(path: Path, strict: bool = False) -> str:
    """Return a file's text, with a replacement character for each undecodable byte; empty where there is no file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError:
        if strict:
            raise
        return ""


def _parse(parser: Callable[[str], object], text: str) -> Record | None:
    """Return what the parser makes of the text if it is a mapping, else None."""
    try:
        found = parser(text)
    except Exception:  # noqa: BLE001 - a damaged file can make a parser raise almost anything
        return None
    return found if isinstance(found, dict) else None
