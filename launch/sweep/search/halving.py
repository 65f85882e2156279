"""Asynchronous successive halving (ASHA, Li et al., 2020): which trials go on, as a pure function of their results.

At each rung one trial in `factor` goes on. ASHA promotes a trial as soon as it is among the best of those that have
come to its rung by then; so what it does depends on which came first. Here the order is not that of the clock: trials
count in the order of their numbers, and at a higher rung in that of their promotion. A trial's result counts once all
before it have one. So the same trials are promoted whatever ran at the same time, or was killed in between, and nobody
waits: while results are missing, further trials begin.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

FAILED = math.inf  # the score of a trial that cannot go on: the worst one


@dataclass(frozen=True)
class Targets:
    """What was decided.

    targets   for each trial, the index of the rung to which it trains, or the number of rungs: to its end
    final     for each trial, whether that will not change any more
    """

    targets: tuple[int, ...]
    final: tuple[bool, ...]


def decide_targets(scores: Sequence[Sequence[float | None]], num_rungs: int, factor: int) -> Targets:
    """Return how far each trial is to train.

    scores   for each trial, its result at each rung, low ones are better; None where it has none yet, FAILED where it
             has failed before. Of equal results that of the earlier trial is better
    """
    targets = [0] * len(scores)
    final = [num_rungs == 0] * len(scores)
    order, is_complete = list(range(len(scores))), True
    for rung in range(num_rungs):
        known = _known([scores[trial][rung] for trial in order])
        promoted = _promoted(known, factor)
        is_complete = is_complete and len(known) == len(order)
        if is_complete and not promoted and known and min(known) < FAILED:
            promoted = [known.index(min(known))]  # few come to a high rung: the best of them goes on all the same
        for place in promoted:
            targets[order[place]] = rung + 1
        for place, trial in enumerate(order):
            goes_to_end = targets[trial] == num_rungs
            final[trial] = goes_to_end or (is_complete and place not in promoted) or scores[trial][rung] == FAILED
        order = [order[place] for place in promoted]
    return Targets(tuple(targets), tuple(final))


def _known(scores: Sequence[float | None]) -> list[float]:
    """Return the scores up to the first that is missing."""
    known = []
    for score in scores:
        if score is None:
            break
        known.append(score)
    return known


def _promoted(scores: Sequence[float], factor: int) -> list[int]:
    """Return the places of those that are among the best n // factor of the first n, for any n; in their order."""
    promoted: dict[int, None] = {}
    ranking: list[tuple[float, int]] = []
    for place, score in enumerate(scores):
        entry = (score, place)
        insort(ranking, entry)
        most = len(ranking) // factor
        # Who was among the best before is promoted already: only these two can be new there.
        for best in sorted({entry, ranking[most - 1]}) if most else ():
            if best[0] < FAILED and best <= ranking[most - 1]:
                promoted.setdefault(best[1])
    return list(promoted)
