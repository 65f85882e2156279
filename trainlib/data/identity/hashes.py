"""The SHA-256 of many files as a column: 33 bytes each, where text would take 113."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

NUM_BYTES = 32


class Hashes(Sequence[str | None]):
    """The SHA-256 of each file's bytes, in hex; None for a file that was not read yet.

    hashes_N32   uint8
    is_known_N   bool; the rows of files that were not read are 0
    """

    def __init__(self, hashes_N32: np.ndarray, is_known_N: np.ndarray):
        self.hashes_N32, self.is_known_N = hashes_N32, is_known_N

    @classmethod
    def of(cls, hashes: Iterable[str | None]) -> Hashes:
        """Return the column of these hashes. Raises ValueError for text that is no SHA-256 in hex."""
        values = [b"" if sha256 is None else bytes.fromhex(sha256) for sha256 in hashes]
        if {len(value) for value in values} - {0, NUM_BYTES}:
            raise ValueError(f"a SHA-256 has {2 * NUM_BYTES} digits")
        is_known_N = np.fromiter(map(bool, values), bool, len(values))
        content = b"".join(value or bytes(NUM_BYTES) for value in values)
        return cls(np.frombuffer(content, np.uint8).reshape(-1, NUM_BYTES), is_known_N)

    @classmethod
    def unknown(cls, count: int) -> Hashes:
        """Return the column of so many files, none of which was read."""
        return cls(np.zeros((count, NUM_BYTES), np.uint8), np.zeros(count, bool))

    def __len__(self) -> int:
        return len(self.is_known_N)

    @overload
    def __getitem__(self, index: int) -> str | None: ...
    @overload
    def __getitem__(self, index: slice) -> Hashes: ...
    def __getitem__(self, index: int | slice) -> str | Hashes | None:
        if isinstance(index, slice):
            return Hashes(self.hashes_N32[index], self.is_known_N[index])
        return self.hashes_N32[index].tobytes().hex() if self.is_known_N[index] else None

    def __iter__(self) -> Iterator[str | None]:
        text, digits = self.hashes_N32.tobytes().hex(), 2 * NUM_BYTES
        for row, is_known in enumerate(self.is_known_N.tolist()):
            yield text[digits * row : digits * (row + 1)] if is_known else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Hashes):
            return NotImplemented
        return np.array_equal(self.is_known_N, other.is_known_N) and np.array_equal(self.hashes_N32, other.hashes_N32)

    __hash__ = None  # type: ignore[assignment]

    def content(self) -> str | None:
        """Return the SHA-256 over all hashes, in hex; None where one file was not read yet, or where there is none."""
        if not len(self) or not self.is_known_N.all():
            return None
        return hashlib.sha256(self.hashes_N32.tobytes().hex().encode()).hexdigest()
