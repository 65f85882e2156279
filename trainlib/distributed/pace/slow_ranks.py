"""Which ranks are slow: more than a tenth slower than the median of all, for a minute."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

LIMIT = 1.1  # times the median
LONG_SECONDS = 60.0
PART_SECONDS = 10.0  # over which a rank's time is averaged: a pause is not slowness
FEWEST_PARTS = 3  # where rows come so seldom that a part is longer


class SlowRanks:
    """Takes in what each rank has measured, and says which of them are slow.

    devices   of all ranks, in words
    """

    def __init__(self, devices: Sequence[str], clock: Callable[[], float] = time.monotonic):
        self._devices, self._clock = devices, clock
        self._began = clock()
        self._sums = [[0.0, 0.0] for _ in devices]
        self._slow_since: dict[
            int, tuple[float, int]
        ] = {}  # rank: when the first of its slow parts began, their number
        self._named: dict[int, float] = {}  # rank: its time, in medians

    def add(self, measured: Sequence[Sequence[float]]) -> list[str]:
        """Take in seconds and samples of each rank; return a sentence for each rank that has just become slow."""
        for total, (seconds, samples) in zip(self._sums, measured, strict=True):
            total[0] += seconds
            total[1] += samples
        now = self._clock()
        if now - self._began < PART_SECONDS:
            return []
        whole = {rank: seconds for rank, (seconds, samples) in enumerate(self._sums) if samples}
        times = {rank: seconds / self._sums[rank][1] for rank, seconds in whole.items()}
        began, before = self._began, self._named
        self._began, self._sums = now, [[0.0, 0.0] for _ in self._devices]
        if len(times) < 2:
            return []
        median, of_whole = statistics.median(times.values()), statistics.median(whole.values())
        # All count the same steps. A rank with a sample less than others takes longer for each where a step has few.
        slow = {
            rank: own / median
            for rank, own in times.items()
            if own > LIMIT * median > 0 and whole[rank] > LIMIT * of_whole
        }
        self._slow_since = {
            rank: (since, parts + 1) for rank in slow for since, parts in [self._slow_since.get(rank, (began, 0))]
        }
        self._named = {
            rank: slow[rank]
            for rank, (since, parts) in self._slow_since.items()
            if now - since >= LONG_SECONDS and parts >= FEWEST_PARTS
        }
        return [self._sentence(rank) for rank in self._named if rank not in before]

    @property
    def now(self) -> str:
        """Return which ranks are slow at the moment; empty where none is."""
        return "; ".join(map(self._sentence, self._named))

    def _sentence(self, rank: int) -> str:
        return f"{self._devices[rank]}: {self._named[rank]:.2f} times the median's time per sample"
