"""Groups of pictures that are the same, byte by byte, or show nearly the same, as pure functions of their hashes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

MOST_DIFFERENT = 3  # bits of 64 in which the hashes of near duplicates differ at most
_BANDS = 4  # of 16 bits: hashes that differ in at most 3 bits agree in one of them


def exact_groups(content_N: np.ndarray, whole_N: np.ndarray) -> list[list[int]]:
    """Return the groups of two or more pictures with equal content hashes, each ascending, in the order of the first.

    content_N   uint8 [N, 32]
    whole_N     bool [N]: the pictures that count
    """
    indices = np.flatnonzero(whole_N)
    keys = np.ascontiguousarray(content_N[indices]).view(np.dtype((np.void, content_N.shape[1])))[:, 0]
    _, group_of, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(group_of, kind="stable")
    groups = np.split(indices[order], np.cumsum(counts)[:-1])
    return sorted(group.tolist() for group in groups if len(group) > 1)


def near_groups(shows_N: np.ndarray, content_N: np.ndarray, whole_N: np.ndarray) -> list[list[int]]:
    """Return the groups of pictures that show nearly the same, each ascending, in the order of the first.

    Of pictures that are equal in every byte only the first is in a group. Pictures belong together whose hashes differ
    in at most MOST_DIFFERENT bits, and pictures that belong together with these.

    shows_N   uint64 [N]
    """
    chosen = whole_N.copy()
    for group in exact_groups(content_N, whole_N):
        chosen[group[1:]] = False
    indices = np.flatnonzero(chosen)
    hashes, hash_of = np.unique(shows_N[indices], return_inverse=True)
    root = np.arange(len(hashes))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = root[root[i]]
            i = int(root[i])
        return i

    for i, j in _near_pairs(hashes):
        root[max(find(i), find(j))] = min(find(i), find(j))
    groups: dict[int, list[int]] = {}
    for index, number in zip(indices.tolist(), hash_of.tolist(), strict=True):
        groups.setdefault(find(number), []).append(index)
    return sorted(group for group in groups.values() if len(group) > 1)


def _near_pairs(hashes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of different hashes that differ in at most MOST_DIFFERENT bits; some more than once."""
    for band in range(_BANDS):
        part = (hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        order = np.argsort(part, kind="stable")
        starts = np.flatnonzero(np.diff(part[order], prepend=np.uint64(1 << 16)))
        for bucket in np.split(order, starts[1:]):
            for place in range(len(bucket) - 1):
                others = bucket[place + 1 :]
                distances = np.bitwise_count(hashes[bucket[place]] ^ hashes[others])
                for other in others[distances <= MOST_DIFFERENT].tolist():
                    yield int(bucket[place]), other
