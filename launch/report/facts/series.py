"""Arithmetic of curves: series of (step, value) are thinned and smoothed, axes get ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence

Point = tuple[float, float]
Points = Sequence[Point]

LARGEST = 1e100  # a value that is drawn; those below its inverse are drawn as 0
_UNIT = 2.0**400  # of sums, in parts of 1
SMOOTH_FROM = 40  # points: a shorter series is shown as it is


def drawable(points: Points) -> list[Point]:
    """Return the points without those of numbers that no axis can show, with 0 for those that are as good as 0."""
    return [(step, value if abs(value) * LARGEST > 1 else 0.0) for step, value in points if abs(value) < LARGEST]


def thinned(points: Points, buckets: int) -> list[Point]:
    """Return at most 2 * buckets + 2 of the points: the lowest and the highest of each bucket, and both ends.

    Buckets are equal parts of the range of steps, so that a spike of one step stays as high as it was.
    """
    if len(points) <= 2 * buckets + 2:
        return list(points)
    first, last = points[0][0], points[-1][0]
    scale = buckets / ((last - first) or 1.0)
    kept = {0, len(points) - 1}
    start = 0
    while start < len(points):
        bucket = int((points[start][0] - first) * scale)
        end = start + 1
        while end < len(points) and int((points[end][0] - first) * scale) == bucket:
            end += 1
        within = range(start, end)
        kept |= {min(within, key=lambda index: points[index][1]), max(within, key=lambda index: points[index][1])}
        start = end
    return [points[index] for index in sorted(kept)]


def window_of(points: Points) -> int:
    """Return the number of points that a series of this length is averaged over: odd, and 1 for a short series."""
    return 1 if len(points) < SMOOTH_FROM else 2 * min(len(points) // 60 + 1, 250) + 1


def smoothed(points: Points, window: int) -> list[Point]:
    """Return the mean of each value and its neighbours, half of `window` on either side, fewer at the ends."""
    total, sums = 0, [0]
    for _, value in points:
        total += int(value * _UNIT)  # whole numbers: a spike leaves no trace in the sums of what follows
        sums.append(total)
    result = []
    for index, (step, _) in enumerate(points):
        start, end = max(0, index - window // 2), min(len(points), index + window // 2 + 1)
        result.append((step, (sums[end] - sums[start]) / ((end - start) * int(_UNIT))))
    return result


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers, the first at or below `low`, the last at or above `high`."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # ticks have twelve digits
        low, high = (0.0, 1.0) if low == 0 else (low - abs(low) / 2, low + abs(low) / 2)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    interval = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / interval + 1e-9), math.ceil(high / interval - 1e-9)
    return [float(f"{index * interval:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Return round numbers that span [low, high], both above 0, nearly evenly on a logarithmic axis."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        every = [factor * 10.0**power for power in range(first, max(last, first + 1) + 1) for factor in factors]
        below = max((tick for tick in every if tick <= low * 1.0001), default=every[0])
        above = min((tick for tick in every if tick >= high * 0.9999 and tick > below), default=every[-1])
        ticks = [tick for tick in every if below <= tick <= above]
        if len(ticks) <= most:
            break
    interval = -(-len(ticks) // most)
    return [float(f"{tick:.12g}") for tick in ticks[::interval]] + (ticks[-1:] if (len(ticks) - 1) % interval else [])


def tick_label(value: float) -> str:
    """Return a number in its short form: 0.25, 20k, 1.5M, 1e-5."""
    size = abs(value)
    for limit, suffix in ((1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if suffix == 'k' else 1e6):.6g}{suffix}"
    if size and size < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.6g}"
