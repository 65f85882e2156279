"""What of the benchmark fits into a number of minutes."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Sequence

WEIGHTS = {"smoke": 2, "waits": 1, "vgg16": 3, "loops": 4, "airbench": 4}  # of the parts: how long each takes
LEAST_SECONDS = 20.0  # a part with less is left out
RUNS = 5  # of each of airbench's recipes, at most


class Budget:
    """Seconds that are divided among parts: each gets its share of what those before it have left."""

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.monotonic):
        self.is_limited = math.isfinite(seconds)
        self._ends, self._clock = clock() + seconds, clock

    def until(self, part: str, later: Sequence[str]) -> float | None:
        """Return the moment, by the clock, at which this part is to end; None where there is no time for it.

        later   the parts behind it
        """
        left = self._ends - self._clock()
        seconds = left * WEIGHTS[part] / sum(WEIGHTS[name] for name in (part, *later)) if self.is_limited else math.inf
        return self._clock() + seconds if seconds >= LEAST_SECONDS else None


def minutes(text: str) -> float:
    """Return the seconds of a text like 8m. Raises ArgumentTypeError for another text."""
    if not (found := re.fullmatch(r"([1-9][0-9]{0,3})m", text)):
        raise argparse.ArgumentTypeError(f"got {text!r}, must be minutes like 8m")
    return 60.0 * int(found[1])
