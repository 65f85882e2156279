"""Members of archives: where the bytes of each lie, and reading them by offset, without unpacking anything."""

from __future__ import annotations

import os
import stat
import threading
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainlib.data.identity.stamp import Stamp
from trainlib.data.pictures.files import MAX_BYTES
from trainlib.errors import DataError

STORED, DEFLATED = 0, 8  # zip's numbers of the methods that are read; a member of a tar is stored
ZIP_HEADER = 30  # bytes before a zip member's name
MAX_OPEN = 256  # archives whose files are kept open; more are opened for each picture
MAX_NAME = 4096  # bytes


class Member(NamedTuple):
    """A regular file in an archive.

    offset    of its bytes in a tar, of its local header in a zip
    stored    bytes in the archive; `size` once they are inflated
    method    STORED or DEFLATED
    crc       CRC-32 of its bytes in a zip; None in a tar, which has none
    """

    name: str
    offset: int
    stored: int
    size: int
    method: int = STORED
    crc: int | None = None


MemberPlace = tuple[int, Member]  # the number of an archive, and the member in it


@dataclass(frozen=True)
class Archive:
    """An archive file and its members by name.

    left_out   names of links, devices and the like, which are no files
    """

    path: str
    is_zip: bool
    stamp: Stamp
    members: dict[str, Member]
    left_out: list[str]


def open_archive(path: Path | str) -> int:
    """Open an archive's file and return its descriptor. Raises OSError for what is no regular file, at once."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no regular file but a pipe, a device or a folder")
    return descriptor


def safe_name(name: str, archive: str) -> str:
    """Return a member's name without a leading "./". Raises DataError for one that leads out of its archive."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or len(name) > MAX_NAME:
        raise DataError(
            f"data.root: {archive} holds {name[:200]!r}, which leads out of the archive: do not trust it, or pack it "
            "again from its folder (`launch pack`)"
        )
    return "/".join(part for part in parts if part not in ("", "."))


class ArchiveFiles:
    """Pictures in archives: picture i is member i, a pair of the archive's number and the member."""

    def __init__(self, archives: Sequence[Archive], members: Iterable[tuple[int, Member]]):
        self._paths = [archive.path for archive in archives]
        self._is_zip = [archive.is_zip for archive in archives]
        self._stamps = [archive.stamp for archive in archives]
        rows = list(members)
        self._names = [member.name for _, member in rows]
        crcs = (-1 if member.crc is None else member.crc for _, member in rows)
        columns = (
            (number, m.offset, m.stored, m.size, m.method, crc) for (number, m), crc in zip(rows, crcs, strict=True)
        )
        self._rows = np.array(list(columns), np.int64).reshape(-1, 6)
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._open, self._lock = {}, threading.Lock()

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)

    def size(self, index: int) -> int:
        """Return the number of a member's bytes, as the archive gives it."""
        return int(self._rows[index, 3])

    def describe(self, index: int) -> str:
        """Return the archive's path and the member's name."""
        return f"{self._paths[self._rows[index, 0]]}:{self._names[index]}"

    def read(self, index: int) -> bytes:
        """Return a member's bytes. Raises OSError or ValueError where they are damaged, missing or far too many."""
        number, offset, stored, size, method, crc = self._rows[index].tolist()
        if max(stored, size) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
        if len(self._paths) <= MAX_OPEN:
            return self._read(self._kept_open(number), number, offset, stored, size, method, crc)
        descriptor = self._checked(number)
        try:
            return self._read(descriptor, number, offset, stored, size, method, crc)
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, number: int, offset: int, stored: int, size: int, method: int, crc: int) -> bytes:
        if self._is_zip[number]:
            offset += _zip_header_bytes(_pread(descriptor, ZIP_HEADER, offset))
        data = _pread(descriptor, stored, offset)
        if method == DEFLATED:
            data = _inflate(data, size)
        if crc >= 0 and zlib.crc32(data) != crc:
            raise ValueError("its bytes do not have the checksum that the archive gives: the archive is damaged")
        return data

    def _kept_open(self, number: int) -> int:
        descriptor = self._open.get(number)
        if descriptor is None:
            with self._lock:
                descriptor = self._open.get(number)
                if descriptor is None:
                    descriptor = self._open[number] = self._checked(number)
        return descriptor

    def _checked(self, number: int) -> int:
        """Open an archive; raise OSError where it is not the file whose members were listed."""
        descriptor = open_archive(self._paths[number])
        if Stamp.of(os.fstat(descriptor)) != self._stamps[number]:
            os.close(descriptor)
            raise OSError("its archive changed since its members were listed: start again")
        return descriptor


def _pread(descriptor: int, count: int, offset: int) -> bytes:
    """Return so many bytes. Raises ValueError where the file ends before."""
    data = os.pread(descriptor, count, offset)
    while len(data) < count:
        more = os.pread(descriptor, count - len(data), offset + len(data))
        if not more:
            raise ValueError("the archive ends in the middle of it")
        data += more
    return data


def _zip_header_bytes(header: bytes) -> int:
    """Return the length of a zip member's local header, whose name and extra field need not be the directory's."""
    if header[:4] != b"PK\3\4":
        raise ValueError("there is no header at its place in the archive: the archive is damaged")
    return ZIP_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _inflate(data: bytes, size: int) -> bytes:
    """Return the inflated bytes, of which there must be `size`; no more memory than that is taken."""
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = decompressor.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"it cannot be inflated: {error}") from error
    if len(inflated) != size or not decompressor.eof:
        raise ValueError(f"it does not have the {size} bytes that the archive gives: the archive is damaged")
    return inflated
