"""Verdicts: do the measured ratios, with their 95 % intervals, keep the bounds that were set?

A bound holds when the whole interval is on its good side, fails when the whole interval is on the other, and is
undecided in between: then more or longer rounds, or a quieter machine, are needed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from bench.arms import BARE, DDP, DOCUMENTED, ONE, OURS, OURS_OVER_GLOO, TENSORS, TUTORIALS, TWO
from bench.intervals import Interval, Seconds, bootstrap, ratio
from bench.startup import LAUNCH, SCRIPT


class Verdict(NamedTuple):
    """A measured interval beside its bound.

    unit   unit of the interval and the bound: "" for ratios
    """

    what: str
    interval: Interval
    bound: float
    at_most: bool = False
    unit: str = ""

    @property
    def answer(self) -> str:
        low, high = self.interval.low, self.interval.high
        if self.at_most:
            low, high, bound = -high, -low, -self.bound
        else:
            bound = self.bound
        return "yes" if low >= bound else "no" if high < bound else "undecided"


def verdicts(measured: Mapping[str, Seconds], steps: int) -> Iterator[Verdict]:
    """Yield the verdicts on all parts that were measured.

    measured   seconds of each arm in each round, by part
    steps         of a round of the part `overhead`
    """
    yield from _of_speed(measured.get("speed", {}))
    yield from _of_overhead(measured.get("overhead", {}), steps)
    if startup := measured.get("startup"):
        yield Verdict("start-up / imports and model", ratio(startup[LAUNCH], startup[SCRIPT]), 1.25, at_most=True)
    if TWO in (ranks := measured.get("ranks", {})):
        yield Verdict("two processes / one with two threads", ratio(ranks[ONE], ranks[TWO]), 0.9)
    for part, seconds in measured.items():
        for name in (OURS_OVER_GLOO, DDP):
            if DDP in seconds and name in seconds:
                yield Verdict(f"{part}: ours / {name}", ratio(seconds[name], seconds[OURS]), 1.0)


def _of_speed(seconds: Seconds) -> Iterator[Verdict]:
    if tutorials := [name for name in TUTORIALS if name in seconds]:
        best = min(tutorials, key=lambda name: statistics.median(seconds[name]))
        what = f"ours / the best tutorial, which has {best.partition(', ')[2]}"
        yield Verdict(what, ratio(seconds[best], seconds[OURS]), 2.0)
    for name, bound in (*((name, 1.8) for name in DOCUMENTED), *((name, 1.0) for name in TENSORS), (BARE, 0.98)):
        if name in seconds:
            yield Verdict(f"ours / {name}", ratio(seconds[name], seconds[OURS]), bound)


def _of_overhead(seconds: Seconds, steps: int) -> Iterator[Verdict]:
    """Yield how much longer a peer's step takes than ours, where nearly all of it is the loop."""
    for name in TENSORS:
        if name in seconds:
            longer = [(a - b) / steps * 1e6 for a, b in zip(seconds[name], seconds[OURS], strict=True)]
            yield Verdict(f"{name}: its step takes longer than ours by", bootstrap(longer), 0.0, unit=" us")


def verdict_table(found: Iterator[Verdict]) -> str:
    """Return the verdicts as Markdown; empty text if there are none."""
    rows = []
    for verdict in found:
        digits = 0 if verdict.unit else 3
        median, low, high = (f"{value:,.{digits}f}" for value in verdict.interval)
        sign = "<=" if verdict.at_most else ">="
        bound = f"{sign} {verdict.bound:g}{verdict.unit}"
        rows.append(f"| {verdict.what} | {median}{verdict.unit} ({low} to {high}) | {bound} | {verdict.answer} |")
    return "\n".join(["| | median (95 % interval) | bound | holds |", "|---|---|---|---|", *rows]) if rows else ""
