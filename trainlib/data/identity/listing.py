"""The names, labels and sizes of a data set's samples, wherever it lies, and a hash of each file."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trainlib.data.identity.stamp import Stamp

NAMED_AT_MOST = 5
FORMAT = 1


@dataclass(frozen=True)
class SampleFile:
    """The file of one sample: its name below the data's root, as in `train/cat/1.png`, its label, and its bytes.

    sha256   of its bytes, in hex; None before it was read
    """

    name: str
    label: int
    stamp: Stamp
    sha256: str | None = None


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
    files: tuple[SampleFile, ...] = ()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over source, classes, and name, label and size of every sample, in hex."""
        digest = hashlib.sha256(json.dumps([self.source, self.classes, dict(self.counts)]).encode())
        for file in self.files:
            digest.update(f"\0{file.name}\0{file.label}\0{file.stamp.size}".encode(errors="surrogateescape"))
        return digest.hexdigest()

    @functools.cached_property
    def content(self) -> str | None:
        """SHA-256 over the hashes of all files, in hex; None where one of them was not read yet, or for no files."""
        hashes = [file.sha256 for file in self.files]
        known = [sha256 for sha256 in hashes if sha256 is not None]
        return hashlib.sha256("".join(known).encode()).hexdigest() if known and len(known) == len(hashes) else None

    def with_hashes(self, known: Mapping[str, str]) -> Listing:
        """Return the listing with the hash of each file that had none, where it is known by the file's name."""
        files = (f if f.sha256 else replace(f, sha256=known.get(f.name)) for f in self.files)
        return replace(self, files=tuple(files))

    @property
    def facts(self) -> dict[str, str | None]:
        """The two digests, for a checkpoint to keep."""
        return {"listing": self.digest, "content": self.content}


def file_listing(source: str, classes: Sequence[str], splits: Mapping[str, Sequence[SampleFile]]) -> Listing:
    """Return the listing of a data set of files."""
    counts = {split: len(files) for split, files in splits.items()}
    return Listing(source, tuple(classes), counts, tuple(file for files in splits.values() for file in files))


def identities(names: Iterable[str]) -> Tensor:
    """Return a number for each name, int64 [N], which depends on the name alone: what a random split goes by."""
    hashes = (hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in names)
    return torch.tensor([int.from_bytes(digest[:8], "little", signed=True) for digest in hashes], dtype=torch.int64)


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
    """Return the listing as text that `parse_listing` reads: JSON, a line on the whole, then one for each file."""
    head = {"format": FORMAT, "source": listing.source, "classes": listing.classes, "counts": dict(listing.counts)}
    lines = [json.dumps(head)]
    lines += [json.dumps([file.name, file.label, file.sha256, *file.stamp]) for file in listing.files]
    return "\n".join([*lines, ""])


def parse_listing(text: str) -> Listing | None:
    """Return the listing that `dump_listing` wrote; None for anything else, as a file may be damaged."""
    try:
        head, *rows = [json.loads(line) for line in text.splitlines()]
        files = [
            SampleFile(str(name), int(label), Stamp(*map(int, stamp)), sha256 and str(sha256))
            for name, label, sha256, *stamp in rows
        ]
        counts = {str(split): int(count) for split, count in head["counts"].items()}
        return Listing(str(head["source"]), tuple(map(str, head["classes"])), counts, tuple(files))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def _class(listing: Listing, file: SampleFile) -> str | None:
    return listing.classes[file.label] if 0 <= file.label < len(listing.classes) else None


def _counts(listing: Listing) -> str:
    return " and ".join(f"{count} samples for {split}" for split, count in listing.counts.items())


def _some(names: Sequence[str]) -> str:
    text = ", ".join(names[:NAMED_AT_MOST])
    return text if len(names) <= NAMED_AT_MOST else f"{text} and {len(names) - NAMED_AT_MOST} more"
