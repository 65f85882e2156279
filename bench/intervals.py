"""Confidence intervals of a ratio of two arms, from rounds in which both were timed one after the other."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

RESAMPLES = 5_000
Seconds = Mapping[str, Sequence[float]]  # of each arm, in each round


class Interval(NamedTuple):
    """The median over the rounds, or another statistic, and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float


def bootstrap(values: Sequence[float], statistic: Callable[[Sequence[float]], float] = statistics.median) -> Interval:
    """Return a statistic and its interval, from rounds drawn with replacement (Efron's percentile interval)."""
    generator = random.Random(0)
    drawn = sorted(statistic(generator.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return Interval(statistic(values), drawn[round(0.025 * RESAMPLES)], drawn[round(0.975 * RESAMPLES) - 1])


def ratio(slower: Sequence[float], faster: Sequence[float]) -> Interval:
    """Return how many times as fast `faster` is, from both arms' seconds in each round."""
    return bootstrap([a / b for a, b in zip(slower, faster, strict=True)])
