"""What a source of files found, before any picture is read: the samples as columns, and which split each is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from trainlib.data.identity.names import PrefixedNames
from trainlib.data.identity.stamp import Stamps
from trainlib.data.pictures.files import PictureFiles, SomeFiles

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Samples:
    """The samples of a data set of files, one row each: first those of train, then of val, then of test.

    source    the name in `data.name`
    classes   in the order of the labels
    counts    samples in each of "train", "val" and "test"; 0 where the data bring no such split
    names     of each sample, below its split's folder: what it is known by, wherever the data lie
    labels_N  int64 [N], or of sets of classes bool [N, C], on the CPU
    stamps    what the file system says of each file
    files     the encoded pictures
    folders   what comes before the names of a split in the whole data set, as in {"train": "train/", "val": "valid/"}
    groups    the group of each sample, by name; None where samples stand alone
    notices   sentences for the user, such as on files that are left out, each with its level (see `logging`)
    """

    source: str
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    names: Sequence[str]
    labels_N: Tensor
    stamps: Stamps
    files: PictureFiles
    folders: Mapping[str, str] = field(default_factory=dict)
    groups: Sequence[str] | None = None
    notices: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, split: str) -> range:
        """Return the rows of a split."""
        start = 0
        for name in SPLITS:
            end = start + self.counts.get(name, 0)
            if name == split:
                return range(start, end)
            start = end
        raise KeyError(split)

    def full_names(self) -> PrefixedNames:
        """Return the name of each sample in the whole data set, with its split's folder in front."""
        parts = [(self.folders.get(split, ""), self.counts.get(split, 0)) for split in SPLITS]
        return PrefixedNames(self.names, parts)

    def without_test(self) -> Samples:
        """Return the same samples without those of the test split that the data bring."""
        if not self.counts.get("test"):
            return self
        rows = np.arange(len(self) - self.counts["test"])
        return replace(
            self,
            counts=dict(self.counts) | {"test": 0},
            names=self.names[: len(rows)],
            labels_N=self.labels_N[: len(rows)],
            stamps=self.stamps.take(rows),
            files=SomeFiles(self.files, rows),
            groups=None if self.groups is None else self.groups[: len(rows)],
        )

    def with_test(self, test_rows: Tensor) -> Samples:
        """Return the same samples with these rows, int64, moved from train to test; all others keep their order.

        The rows keep the names that they had in train's folder.
        """
        is_test_N = torch.zeros(len(self), dtype=torch.bool)
        is_test_N[test_rows] = True
        order = torch.cat([torch.nonzero(~is_test_N)[:, 0], torch.nonzero(is_test_N)[:, 0]])
        rows = np.asarray(order)
        counts = dict(self.counts) | {"train": self.counts["train"] - len(test_rows), "test": len(test_rows)}
        return replace(
            self,
            counts=counts,
            names=[self.names[row] for row in rows.tolist()],
            labels_N=self.labels_N[order],
            stamps=self.stamps.take(rows),
            files=SomeFiles(self.files, rows),
            folders={**self.folders, "test": self.folders.get("train", "")},
            groups=None if self.groups is None else [self.groups[row] for row in rows.tolist()],
        )
