"""Mean and standard deviation of the training images, computed once and kept in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from trainlib.data.datasets.dataset import STATISTICS_SAMPLES, PerChannel, channel_statistics
from trainlib.data.datasets.images import Images
from trainlib.data.identity.stamp import Stamps
from trainlib.data.pictures.files import PictureFiles
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.files.locks import exclusive_lock

Statistics = tuple[PerChannel, PerChannel]


def statistics_key(pixels_key: str, files: PictureFiles, stamps: Stamps, num_train: int) -> str:
    """Return a digest of all that decides the statistics of the first `num_train` pictures.

    pixels_key   what decides the pixels, apart from the files
    """
    digest = hashlib.sha256(f"{pixels_key} {num_train}".encode())
    num_chosen = min(num_train, STATISTICS_SAMPLES)
    for place in range(num_chosen):
        row = place * num_train // num_chosen
        digest.update(f"\0{files.describe(row)}\0{stamps[row]}".encode(errors="surrogateescape"))
    return digest.hexdigest()


def kept_statistics(
    folder: Path, key: str, images: Images, *, anew: bool, stop_requested: Callable[[], bool], is_main: bool
) -> Statistics:
    """Return the statistics in the folder if they have this key; else compute them, in one process, and keep them.

    anew   compute them in any case
    """
    path = folder / "statistics.json"
    kept = None if anew else _read(path, key)
    if kept is not None:
        return kept
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Rank 0 goes first where it can, since it is the one that shows progress.
        with exclusive_lock(folder / "statistics.lock", stop_requested=stop_requested, delay=0.0 if is_main else 1.0):
            kept = None if anew else _read(path, key)
            if kept is None:
                kept = channel_statistics(images)
                write_atomically(path, json.dumps({"key": key, "mean": kept[0], "std": kept[1]}))
    except OSError:  # they are computed at the next start again
        pass
    return kept or channel_statistics(images)


def _read(path: Path, key: str) -> Statistics | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        facts = json.loads(path.read_bytes())
        mean, std = (tuple(map(float, facts[name])) for name in ("mean", "std"))
        if facts["key"] == key:
            return mean, std
    return None
