"""The names, labels and sizes of a data set's samples, wherever it lies, and a hash of each file."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainlib.data.identity.hashes import Hashes
from trainlib.data.identity.sample_files import SampleFile, SampleFiles, labels_from
from trainlib.data.identity.stamp import Stamp, Stamps

NAMED_AT_MOST = 5
_ON_DISK = ("image_folder", "table")  # sources whose samples are files of their own
FORMAT = 2  # 1 had a line for each file


@dataclass(frozen=True)
class Listing:
    """All that a data set is made of. Two data sets with equal listings and contents give the same training.

    source    the name in `data.name`
    classes   in the order of the labels
    counts    samples by split
    files     in the order of the samples, training before test; empty for data that are no files
    """

    source: str = ""
    classes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    files: SampleFiles = field(default_factory=SampleFiles)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over source, classes, and name, label and size of every sample, in hex."""
        digest = hashlib.sha256(json.dumps([self.source, self.classes, dict(self.counts)]).encode())
        digest.update(self.files.listed())
        return digest.hexdigest()

    @functools.cached_property
    def content(self) -> str | None:
        """SHA-256 over the hashes of all files, in hex; None where one of them was not read yet, or for no files."""
        return self.files.content()

    def with_hashes(self, hashes: Hashes) -> Listing:
        """Return the listing with the hash of each file's bytes, in their order."""
        return self._with(self.files.with_hashes(hashes))

    def with_known(self, known: Mapping[str, str]) -> Listing:
        """Return the listing with the hash of each file that had none, where it is known by the file's name."""
        return self._with(self.files.with_known(known))

    def _with(self, files: SampleFiles) -> Listing:
        """Return the listing with the same files, of which other hashes are known."""
        listing = replace(self, files=files)
        listing.__dict__["digest"] = self.digest  # which does not depend on the hashes
        return listing

    def file_of(self, index: int, root: str) -> str | None:
        """Return where a person finds a sample: its file below `root`, its name in an archive; None for no file."""
        if not self.files:
            return None
        name = self.files[index].name
        return os.path.join(root, name) if self.source in _ON_DISK else name

    @property
    def facts(self) -> dict[str, str | None]:
        """The two digests, for a checkpoint to keep."""
        return {"listing": self.digest, "content": self.content}


def identities(names: Iterable[str]) -> Tensor:
    """Return a number for each name, int64 [N], which depends on the name alone: what a random split goes by."""
    starts = [hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8] for name in names]
    return torch.from_numpy(np.frombuffer(b"".join(starts), "<i8").astype(np.int64))


def changes(old: Listing, new: Listing) -> list[str]:
    """Return a sentence for each way in which data are not what they were; empty for the same data.

    Files whose bytes are not known on both sides count as unchanged.
    """
    found = []
    if old.source != new.source:
        found.append(f"data.name was {old.source}, is {new.source}")
    if old.classes != new.classes:
        found.append(f"the classes were {_some(old.classes)}; they are {_some(new.classes)}")
    if not old.files and not new.files:
        if dict(old.counts) != dict(new.counts):
            found.append(f"there were {_counts(old)}; there are {_counts(new)}")
        return found
    before, now = ({file.name: file for file in listing.files} for listing in (old, new))
    both = [(before[name], now[name]) for name in before if name in now]
    kinds = {
        "removed": [name for name in before if name not in now],
        "added": [name for name in now if name not in before],
        "of another class": [b.name for a, b in both if _class(old, a) != _class(new, b)],
        "with other bytes": [
            b.name for a, b in both if a.stamp.size != b.stamp.size or (a.sha256 and b.sha256 and a.sha256 != b.sha256)
        ],
    }
    found += [
        f"{len(names)} {'file' if len(names) == 1 else 'files'} {kind}: {_some(names)}"
        for kind, names in kinds.items()
        if names
    ]
    return found or (["the order of the samples is another"] if old.digest != new.digest else [])


def dump_listing(listing: Listing) -> str:
    """Return the listing as text that `parse_listing` reads: JSON, a line on the whole, then one for each column."""
    files = listing.files
    head = {"format": FORMAT, "source": listing.source, "classes": listing.classes, "counts": dict(listing.counts)}
    head |= {"listing": listing.digest, "content": listing.content}
    columns = [list(files.names), files.plain_labels(), list(files.hashes), *files.stamps.rows_N4.T.tolist()]
    return "".join(json.dumps(line) + "\n" for line in [head, *columns])


def parse_listing(text: str) -> Listing | None:
    """Return the listing that `dump_listing` wrote; None for anything else, as a file may be damaged."""
    try:
        head, *lines = [json.loads(line) for line in text.splitlines()]
        counts = {str(split): int(count) for split, count in head["counts"].items()}
        files = _parse_rows(lines) if head["format"] == 1 else _parse_columns(lines, len(head["classes"]))
        return Listing(str(head["source"]), tuple(map(str, head["classes"])), counts, files)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def _parse_columns(lines: Sequence[Any], num_classes: int) -> SampleFiles:
    names, labels, hashes, *stamps = lines
    files = SampleFiles(
        names, labels_from(labels, num_classes), Stamps(np.array(stamps, np.int64).T), Hashes.of(hashes)
    )
    if {type(name) for name in names} - {str}:
        raise ValueError("names must be text")
    if not len(names) == len(labels) == len(hashes) == len(files.stamps) or files.stamps.rows_N4.shape[1:] != (4,):
        raise ValueError("the columns must be of one length")
    return files


def _parse_rows(lines: Sequence[Any]) -> SampleFiles:
    """Return what versions before the columns wrote: a line for each file."""
    return SampleFiles.of(
        SampleFile(str(name), int(label), Stamp(*map(int, stamp)), sha256 and str(sha256))
        for name, label, sha256, *stamp in lines
    )


def _class(listing: Listing, file: SampleFile) -> list[str | None]:
    labels = file.label if isinstance(file.label, tuple) else (file.label,)
    return [listing.classes[label] if 0 <= label < len(listing.classes) else None for label in labels]


def _counts(listing: Listing) -> str:
    return " and ".join(f"{count} samples for {split}" for split, count in listing.counts.items())


def _some(names: Sequence[str]) -> str:
    text = ", ".join(names[:NAMED_AT_MOST])
    return text if len(names) <= NAMED_AT_MOST else f"{text} and {len(names) - NAMED_AT_MOST} more"
