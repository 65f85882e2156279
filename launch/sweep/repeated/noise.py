"""Whether the difference between two models is larger than noise: a paired bootstrap over the samples of the test."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from launch.sweep.repeated.predictions import Predictions
from trainlib.errors import TrainlaunchError

RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """The accuracy of one model minus that of another on the same samples, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def is_larger_than_noise(self) -> bool:
        """Return True if the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        words = "larger than noise" if self.is_larger_than_noise else "not larger than noise"
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]: {words}"


def difference(one: Predictions, other: Predictions) -> Difference:
    """Compare the accuracies of two models on the same samples, by a paired bootstrap; always the same answer.

    Each resample draws as many samples, with replacement (Efron and Tibshirani, 1993, chapter 16). What a sample adds
    to the difference is 1, 0 or -1, so a resample is a draw of three counts.

    Raises TrainlaunchError where the samples are not the same.
    """
    right = dict(zip(other.samples, other.is_right, strict=True))
    if right.keys() != set(one.samples) or len(one.samples) != len(right):
        raise TrainlaunchError("the two models were tested on other samples: evaluate both on the same split")
    gains = [a - right[sample] for sample, a in zip(one.samples, one.is_right, strict=True)]
    return paired_bootstrap(gains.count(1), gains.count(-1), len(gains))


def paired_bootstrap(better: int, worse: int, count: int, resamples: int = RESAMPLES) -> Difference:
    """Return the difference of accuracies with its 95 % percentile interval.

    better, worse   number of samples that only the first model, and only the second, answers rightly
    """
    draw, changed = random.Random(0), better + worse

    def resampled() -> float:
        drawn = _binomial(count, changed / count, draw.random())
        gained = _binomial(drawn, better / changed, draw.random()) if changed else 0
        return (2 * gained - drawn) / count

    found = sorted(resampled() for _ in range(resamples))
    tail = round(0.025 * resamples)
    return Difference((better - worse) / count, found[tail], found[-1 - tail])


def _binomial(count: int, probability: float, uniform: float) -> int:
    """Return the number of successes in `count` trials that a number from 0 to 1 stands for."""
    if probability in (0.0, 1.0):
        return round(count * probability)
    return min(bisect_left(_cumulated(count, probability), uniform), count)


@lru_cache(maxsize=4096)
def _cumulated(count: int, probability: float) -> list[float]:
    """Return the probabilities of at most 0, 1, ..., `count` successes."""
    success, failure, whole = math.log(probability), math.log1p(-probability), math.lgamma(count + 1)
    return list(
        accumulate(
            math.exp(whole - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * success + (count - k) * failure)
            for k in range(count + 1)
        )
    )
