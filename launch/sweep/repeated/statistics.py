"""What several figures of one kind say together: mean, deviation and a confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95
_PANELS = 2000  # of Simpson's rule; an even number


@dataclass(frozen=True)
class Spread:
    """The mean of some figures, and how far they are apart.

    deviation   the sample's standard deviation (n - 1); None for one figure
    low, high   ends of the 95 % interval of the mean by Student's t distribution; None for one figure
    """

    count: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None


def spread(values: Sequence[float]) -> Spread:
    """Return mean, deviation and interval of at least one figure.

    The t interval takes the figures for independent. Those of folds are not quite, as their training samples overlap:
    it is then too narrow rather than too wide (Bengio and Grandvalet, 2004).
    """
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Spread(1, mean, None, None, None)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = t_quantile(count - 1) * deviation / math.sqrt(count)
    return Spread(count, mean, deviation, mean - half, mean + half)


@cache
def t_quantile(freedom: int) -> float:
    """Return t with P(|T| <= t) = 0.95 for Student's distribution with so many degrees of freedom.

    With T = sqrt(freedom) tan(angle) the density in the angle is a power of its cosine, without tails to cut off.
    """
    log_factor = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(math.pi)

    def within(angle: float) -> float:
        width = angle / _PANELS
        values = [math.cos(index * width) ** (freedom - 1) for index in range(_PANELS + 1)]
        inner = 4 * math.fsum(values[1:-1:2]) + 2 * math.fsum(values[2:-1:2])
        return 2 * math.exp(log_factor) * (values[0] + inner + values[-1]) * width / 3

    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if within(middle) < CONFIDENCE else (low, middle)
    return math.sqrt(freedom) * math.tan(middle)
