"""An entry of the cache of decoded images: its two files, and the proof that both are what was once decoded."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainlib.data.dataset import PerChannel
from trainlib.data.identity.stamp import Stamp
from trainlib.data.pictures.files import PictureFiles
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.machine.limits import usable_cores

BLOCK = 1 << 26  # bytes that are hashed at a time, so that all cores take part
NAMED_AT_MOST = 5

logger = logging.getLogger("trainlib.data")


class Decoded(NamedTuple):
    """What an entry holds: the images, uint8 [N, 3, S, S], or None where they are streamed; see `DecodedImages`."""

    images_NCHW: np.ndarray | None
    mean: PerChannel
    std: PerChannel
    hashes: list[str | None]


class CacheEntry:
    """The files `<path>.npy` and `<path>.json` of the images of one data set.

    shape   [N, 3, S, S]
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.array_path = path.with_suffix(".npy")
        self.facts_path = path.with_suffix(".json")
        self.lock_path = path.with_suffix(".lock")
        self.shape = shape

    def read(self, files: PictureFiles, stamps: Sequence[Stamp], *, verify: bool) -> Decoded | None:
        """Return what the entry holds; None where it is missing, damaged, or of files that are others now.

        stamps   of the files, as they are now
        verify   read every file again, not only those whose stamp is not the one that they were read under
        """
        facts = self._read_facts(len(files))
        if facts is None:
            return None
        images_NCHW = self.open_array()
        if facts["sha256"] is not None and (images_NCHW is None or array_sha256(images_NCHW) != facts["sha256"]):
            if images_NCHW is not None:
                logger.warning("The cache of decoded images is damaged (%s): they are decoded again.", self.array_path)
            return None
        mean, std = facts["statistics"]
        entry = Decoded(images_NCHW if facts["sha256"] is not None else None, mean, std, facts["hashes"])
        stale = [i for i, stamp in enumerate(stamps) if verify or stamp != facts["stamps"][i]]
        if not stale:
            return entry
        changed = [files.describe(i) for i in _changed(files, stale, entry.hashes)]
        if changed:
            more = f" and {len(changed) - NAMED_AT_MOST} more" if len(changed) > NAMED_AT_MOST else ""
            names = ", ".join(changed[:NAMED_AT_MOST])
            logger.warning("Image files that changed since they were decoded are decoded again: %s%s.", names, more)
            return None
        with suppress(OSError):  # it is only asked again at the next start then
            self.write(stamps, entry)
        return entry

    def write(self, stamps: Sequence[Stamp], entry: Decoded) -> None:
        """Write the file of facts. Raises OSError where it cannot be written."""
        facts = {
            "mean": entry.mean,
            "std": entry.std,
            "sha256": None if entry.images_NCHW is None else array_sha256(entry.images_NCHW),
            "files": [[sha256, *stamp] for sha256, stamp in zip(entry.hashes, stamps, strict=True)],
        }
        write_atomically(self.facts_path, json.dumps(facts))

    def open_array(self) -> np.ndarray | None:
        """Memory-map the array copy-on-write; None if it is missing, or of another shape or type."""
        try:
            images_NCHW = np.load(self.array_path, mmap_mode="c")
        except (OSError, ValueError, EOFError):
            return None
        return images_NCHW if images_NCHW.shape == self.shape and images_NCHW.dtype == np.uint8 else None

    def _read_facts(self, num_files: int) -> dict[str, Any] | None:
        try:
            facts = json.loads(self.facts_path.read_bytes())
            (r, g, b), (std_r, std_g, std_b) = facts["mean"], facts["std"]
            rows = [(sha256, Stamp(*stamp)) for sha256, *stamp in facts["files"]]
            sha256 = facts["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if len(rows) != num_files:
            return None
        hashes, stamps = [row[0] for row in rows], [row[1] for row in rows]
        statistics = (r, g, b), (std_r, std_g, std_b)
        return {"statistics": statistics, "sha256": sha256, "hashes": hashes, "stamps": stamps}


def array_sha256(images_NCHW: np.ndarray) -> str:
    """Return the SHA-256, in hex, over the SHA-256s of an array's blocks of 64 MiB."""
    data = images_NCHW.reshape(-1)
    blocks = (data[start : start + BLOCK] for start in range(0, data.nbytes, BLOCK))
    with ThreadPoolExecutor(usable_cores()) as pool:
        hashes = pool.map(lambda block: hashlib.sha256(block.data).digest(), blocks)
        return hashlib.sha256(b"".join(hashes)).hexdigest()


def _changed(files: PictureFiles, indices: Sequence[int], hashes: Sequence[str | None]) -> list[int]:
    """Return which of these files do not have their hashes; a file whose hash is not known counts as changed."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        now = pool.map(lambda index: _sha256(files, index), indices)
        return [index for index, sha256 in zip(indices, now, strict=True) if sha256 != hashes[index]]


def _sha256(files: PictureFiles, index: int) -> str | None:
    """Return the SHA-256 of a file's bytes, in hex; None where it cannot be read."""
    try:
        return hashlib.sha256(files.read(index)).hexdigest()
    except (OSError, ValueError):
        return None
