"""One rank's part in the comparison of all ranks' own times per sample.

What each has measured travels in rows beside the sums of a step's losses, which are exchanged anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TypeVar

from trainlib.distributed.pace.slow_ranks import SlowRanks
from trainlib.distributed.pace.stopwatch import Marks, Stopwatch

logger = logging.getLogger("trainlib")

T = TypeVar("T")


class Pace(Stopwatch):
    """A rank's stopwatch, and the judgement on all ranks.

    rank      this one's number
    devices   of all ranks, in words
    """

    def __init__(self, rank: int, devices: Sequence[str], marks: Marks, *, counts_fetching: bool = True):
        super().__init__(marks, counts_fetching=counts_fetching)
        self._rank, self._num_ranks = rank, len(devices)
        self._judge = SlowRanks(devices)

    def rows(self) -> list[list[float]]:
        """Return a row for each rank, of seconds and samples since the last call; all but this rank's are zeros."""
        rows = [[0.0, 0.0] for _ in range(self._num_ranks)]
        rows[self._rank] = list(self.take())
        return rows

    def judge(self, rows: Sequence[Sequence[float]]) -> str:
        """Take in all ranks' rows; return which ranks are slow, in words, empty for none. Rank 0 warns of new ones."""
        for sentence in self._judge.add(rows):
            if self._rank == 0:
                logger.warning("slow for a minute: %s", sentence)
        return self._judge.now


class NoPace:
    """A stand-in for `Pace` where nothing is compared: one rank, or layers that wait for others themselves."""

    def resume(self) -> None:
        """Do nothing."""

    def pause(self) -> bool:
        """Do nothing; return False."""
        return False

    def end_shard(self, samples: int) -> None:
        """Do nothing."""

    def fetched(self, batches: Iterable[T]) -> Iterable[T]:
        """Return the batches."""
        return batches

    def rows(self) -> list[list[float]]:
        """Return no rows."""
        return []

    def judge(self, rows: Sequence[Sequence[float]]) -> str:
        """Find none slow."""
        return ""
