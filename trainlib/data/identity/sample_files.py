"""The files of a data set's samples as columns, which take a fifth of the memory of as many objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from trainlib.data.identity.hashes import Hashes
from trainlib.data.identity.stamp import Stamp, Stamps


@dataclass(frozen=True)
class SampleFile:
    """The file of one sample: its name below the data's root, as in `train/cat/1.png`, its label, and its bytes.

    label    its class, or its set of classes, ascending
    sha256   of its bytes, in hex; None before it was read
    """

    name: str
    label: int | tuple[int, ...]
    stamp: Stamp
    sha256: str | None = None


class SampleFiles(Sequence[SampleFile]):
    """The files of samples in their order.

    labels_N   int64 [N], or of sets of classes bool [N, C]
    hashes     of each file's bytes, as far as they were read
    """

    def __init__(
        self,
        names: Sequence[str] = (),
        labels_N: np.ndarray | None = None,
        stamps: Stamps | None = None,
        hashes: Hashes | None = None,
    ):
        self.names = names
        self.labels_N = np.empty(0, np.int64) if labels_N is None else labels_N
        self.stamps = Stamps.of([]) if stamps is None else stamps
        self.hashes = Hashes.unknown(len(names)) if hashes is None else hashes

    @classmethod
    def of(cls, files: Iterable[SampleFile]) -> SampleFiles:
        """Return the columns of these files."""
        rows = list(files)
        labels_N = labels_from([row.label for row in rows], 0)
        stamps = Stamps.of(row.stamp for row in rows)
        return cls([row.name for row in rows], labels_N, stamps, Hashes.of(row.sha256 for row in rows))

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> SampleFile: ...
    @overload
    def __getitem__(self, index: slice) -> SampleFiles: ...
    def __getitem__(self, index: int | slice) -> SampleFile | SampleFiles:
        columns = (self.names[index], self.labels_N[index], self.stamps[index], self.hashes[index])
        if isinstance(index, slice):
            return SampleFiles(*columns)  # type: ignore[arg-type]
        name, label, stamp, sha256 = columns
        return SampleFile(name, _plain(label), stamp, sha256)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[SampleFile]:
        return map(SampleFile, self.names, self.plain_labels(), self.stamps, self.hashes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SampleFiles):
            return NotImplemented
        return (
            list(self.names) == list(other.names)
            and np.array_equal(self.labels_N, other.labels_N)
            and self.stamps == other.stamps
            and self.hashes == other.hashes
        )

    __hash__ = None  # type: ignore[assignment]

    def plain_labels(self) -> list[int | tuple[int, ...]]:
        """Return the class of each sample, or its classes."""
        return self.labels_N.tolist() if self.labels_N.ndim == 1 else [_plain(row_C) for row_C in self.labels_N]

    def with_hashes(self, hashes: Hashes) -> SampleFiles:
        """Return the same files with these hashes."""
        return SampleFiles(self.names, self.labels_N, self.stamps, hashes)

    def with_known(self, known: Mapping[str, str | None]) -> SampleFiles:
        """Return the same files with the hash of each that had none, where it is known by the file's name."""
        hashes = [sha or known.get(name) for name, sha in zip(self.names, self.hashes, strict=True)]
        return self.with_hashes(Hashes.of(hashes))

    def known(self) -> dict[str, str]:
        """Return the hash of each file that was read, by its name."""
        return {name: sha for name, sha in zip(self.names, self.hashes, strict=True) if sha}

    def listed(self) -> bytes:
        """Return name, label and size of each sample as bytes, which are the same for the same samples."""
        sizes = self.stamps.rows_N4[:, 0].tolist()
        rows = zip(self.names, self.plain_labels(), sizes, strict=True)
        return "".join([f"\0{name}\0{label}\0{size}" for name, label, size in rows]).encode(errors="surrogateescape")

    def content(self) -> str | None:
        """Return the SHA-256 over all hashes, in hex; None where one file was not read yet, or where there is none."""
        return self.hashes.content()


def labels_from(plain: Sequence[int | Sequence[int]], num_classes: int) -> np.ndarray:
    """Return the column of labels that `SampleFiles.plain_labels` lists. Raises ValueError for anything else."""
    if not any(isinstance(label, Sequence) for label in plain):
        return np.array(plain, np.int64)
    labels_NC = np.zeros((len(plain), num_classes), bool)
    for row_C, classes in zip(labels_NC, plain, strict=True):
        if not isinstance(classes, Sequence) or not all(0 <= label < num_classes for label in classes):
            raise ValueError("labels must all be sets of the classes")
        row_C[list(classes)] = True
    return labels_NC


def _plain(label: Any) -> int | tuple[int, ...]:
    return int(label) if label.ndim == 0 else tuple(np.flatnonzero(label).tolist())
