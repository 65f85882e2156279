"""One shard of a cached data set: some thousand pictures in two files, which a crash leaves old, new, or missing.

`0007-<random>.data` holds a record for each picture, one after another, and `0007.facts` what they are: it names the
data file, has the SHA-256 of it and a checksum of each record, and for each picture's file its SHA-256 and the stamp
(see `Stamp`) under which it was read. Both are written under a temporary name and renamed, the facts last. A data file
never changes: what is made anew gets another name, so that a process that has the old one open goes on with it.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainlib.runs.files.durable import DurableFile, sync_directory, write_atomically


@dataclass(frozen=True)
class Facts:
    """What a shard's facts say.

    key          a digest of the names and sizes of the pictures, in the order of the records
    data         the name of the data file
    sha256       of that file, in hex
    seconds      that it took to make and write a record, with all cores at work
    ends_N       int64: where each record ends in the data file
    checksums_N  uint32: CRC-32 of each record
    hashes_N32   uint8: SHA-256 of each picture's file
    stamps_N4    int64: see `Stamps`
    """

    key: str
    data: str
    sha256: str
    seconds: float
    ends_N: np.ndarray
    checksums_N: np.ndarray
    hashes_N32: np.ndarray
    stamps_N4: np.ndarray

    @property
    def size(self) -> int:
        """Bytes of the data file."""
        return int(self.ends_N[-1]) if len(self.ends_N) else 0

    def dump(self) -> bytes:
        """Return the facts as the bytes of a .npz file."""
        file = io.BytesIO()
        columns: dict[str, Any] = {name: np.asarray(value) for name, value in vars(self).items()}
        np.savez(file, **columns)
        return file.getvalue()

    @classmethod
    def parse(cls, content: bytes) -> Facts:
        """Return the facts that `dump` made. Raises ValueError for anything else."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                values = {name: file[name] for name in cls.__dataclass_fields__}
        except Exception as error:
            raise ValueError(f"{error}") from error
        num = len(values["ends_N"])
        if [len(values[name]) for name in ("checksums_N", "hashes_N32", "stamps_N4")] != [num] * 3:
            raise ValueError("the columns have different lengths")
        key, data, sha256 = (str(values[name]) for name in ("key", "data", "sha256"))
        columns = (values[name] for name in ("ends_N", "checksums_N", "hashes_N32", "stamps_N4"))
        return cls(key, data, sha256, float(values["seconds"]), *columns)


class Shard:
    """The files of one shard, on disk or still to be made.

    rows_N   the pictures' indices in the data set, int64, in an order that follows from their names
    key      a digest of the pictures' names and sizes
    """

    def __init__(self, folder: Path, number: int, rows_N: np.ndarray, key: str):
        self.folder, self.number, self.rows_N, self.key = folder, number, rows_N, key
        self.facts_path = folder / f"{number:04}.facts"
        self.lock_path = folder / f"{number:04}.lock"

    def read_facts(self) -> Facts | None:
        """Return the facts; None where there are none, or where they are of other pictures.

        Raises ValueError where they are damaged.
        """
        try:
            content = self.facts_path.read_bytes()
        except OSError:
            return None
        facts = Facts.parse(content)
        return facts if facts.key == self.key else None

    def write(self, records: Iterable[tuple[bytes, str]], stamps_N4: np.ndarray) -> None:
        """Write the records, each with the SHA-256 of its picture's file, and the facts. The caller holds the lock.

        Raises OSError, and what the records raise; then nothing is left of what was written.
        """
        self._remove_leftovers(keep=None)
        name = f"{self.number:04}-{secrets.token_hex(8)}.data"
        temporary = self.folder / f".{name}.tmp"
        ends, checksums, hashes, end = [], [], [], 0
        start = time.monotonic()
        try:
            with DurableFile(temporary) as file:
                for record, sha256 in records:
                    file.write(record)
                    end += len(record)
                    ends.append(end)
                    checksums.append(zlib.crc32(record))
                    hashes.append(np.frombuffer(bytes.fromhex(sha256), np.uint8))
            os.replace(temporary, self.folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        facts = Facts(
            self.key,
            name,
            str(file.facts["sha256"]),
            (time.monotonic() - start) / max(len(ends), 1),
            np.array(ends, np.int64),
            np.array(checksums, np.uint32),
            np.array(hashes, np.uint8).reshape(-1, 32),
            stamps_N4,
        )
        self.write_facts(facts)
        self._remove_leftovers(keep=name)

    def write_facts(self, facts: Facts) -> None:
        """Write the facts, which make the data file they name valid. Raises OSError."""
        sync_directory(self.folder)
        write_atomically(self.facts_path, facts.dump())

    def discard(self) -> None:
        """Remove the facts, so that the shard is made anew."""
        with suppress(OSError):
            self.facts_path.unlink()

    def remove(self) -> None:
        """Remove all files of the shard but the lock, on a full disk for instance."""
        self.discard()
        with suppress(OSError):
            self._remove_leftovers(keep=None)

    def _remove_leftovers(self, keep: str | None) -> None:
        """Remove data files of earlier times, whole or partial, but for the one of this name."""
        for path in [*self.folder.glob(f"{self.number:04}-*.data"), *self.folder.glob(f".{self.number:04}*.tmp")]:
            if path.name != keep:
                path.unlink(missing_ok=True)


class OpenShard:
    """A shard whose records are read, by any number of threads at a time, until the process ends."""

    def __init__(self, shard: Shard, facts: Facts):
        """Open the data file. Raises OSError, and ValueError where it has another size than it was written with."""
        self.shard, self.facts = shard, facts
        self._file = (shard.folder / facts.data).open("rb", buffering=0)
        if os.fstat(self._file.fileno()).st_size != facts.size:
            self._file.close()
            raise ValueError(f"{facts.data} has another size")

    @cached_property
    def _ends(self) -> list[int]:
        return [0, *self.facts.ends_N.tolist()]

    def read(self, row: int) -> bytes | None:
        """Return a record; None where it is not what was written, or cannot be read."""
        start, end = self._ends[row], self._ends[row + 1]
        try:
            record = os.pread(self._file.fileno(), end - start, start)
        except OSError:
            return None
        return record if zlib.crc32(record) == self.facts.checksums_N[row] and len(record) == end - start else None

    def read_all(self) -> bytearray | None:
        """Return all records, one after another; None where one is not what was written, or cannot be read."""
        content = bytearray(self.facts.size)
        view, place = memoryview(content), 0
        try:
            while place < len(content):
                if not (count := os.preadv(self._file.fileno(), [view[place:]], place)):
                    return None
                place += count
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == self.facts.sha256 else None

    def read_cold(self, num_bytes: int) -> int:
        """Read up to so many bytes from the beginning, from the disk and not from memory; return how many were read."""
        descriptor, place = self._file.fileno(), 0
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, num_bytes, os.POSIX_FADV_DONTNEED)
        while place < num_bytes and (content := os.pread(descriptor, min(1 << 20, num_bytes - place), place)):
            place += len(content)
        return place

    def with_stamps(self, stamps_N4: np.ndarray) -> OpenShard:
        """Return the same shard, with the stamps that its pictures' files have now."""
        return OpenShard(self.shard, replace(self.facts, stamps_N4=stamps_N4))
