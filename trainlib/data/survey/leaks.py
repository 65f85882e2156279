"""A quick look for pictures of the test split that are also trained on, byte by byte, before a training starts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from trainlib.data.sources.samples import Samples

MOST_BYTES = 256_000_000  # to read: about a second from a disk
NAMED_AT_MOST = 3


def leak_notice(samples: Samples) -> str | None:
    """Return a sentence on test pictures that are also in the training images; None where there is none.

    Only files whose size in bytes occurs on both sides are read. Where that is too much, the sentence says so.
    """
    sizes_N = samples.stamps.rows_N4[:, 0]
    is_test_N = np.zeros(len(samples), bool)
    is_test_N[samples.rows("test")] = True
    on_both = np.intersect1d(sizes_N[is_test_N], sizes_N[~is_test_N])
    candidates = np.flatnonzero(np.isin(sizes_N, on_both))
    if (total := int(sizes_N[candidates].sum())) > MOST_BYTES:
        return (
            f"whether pictures of the test split are also trained on was not looked at, as {total / 1e9:.1f} GB would "
            "have to be read: `launch data` does"
        )
    of_training = {digest: row for row, digest in _digests(samples, candidates[~is_test_N[candidates]])}
    tested = _digests(samples, candidates[is_test_N[candidates]])
    leaks = [(of_training[digest], row) for row, digest in tested if digest in of_training]
    if not leaks:
        return None
    names = samples.full_names()
    shown = ", ".join(f"{names[test]} is {names[train]}" for train, test in leaks[:NAMED_AT_MOST])
    return (
        f"{len(leaks)} pictures of the test split are also in the training images, byte by byte: the test will promise "
        f"too much ({shown}{', ...' if len(leaks) > NAMED_AT_MOST else ''}); `launch data` shows all"
    )


def _digests(samples: Samples, rows: np.ndarray) -> Iterator[tuple[int, bytes]]:
    for row in rows.tolist():
        with suppress(OSError, ValueError):  # training tells of files that cannot be read
            yield row, hashlib.sha256(samples.files.read(row)).digest()
