"""`checkpoint.every: auto`: the interval between two checkpoints, from their cost and the failures so far."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from parts import resolved

from trainlib.errors import UserError
from trainlib.runs.attempt.record import count_failures
from trainlib.training.checkpoints.interval import FIRST_STEPS, CheckpointInterval, best_steps
from trainlib.training.metrics.clock import Clock

DAY = 24 * 3600.0


@pytest.mark.parametrize(
    ("cost", "step_seconds", "seconds", "failures", "expected"),
    [
        (0.03, 0.1, 0.0, 0, math.ceil(math.sqrt(2 * 0.03 * DAY) / 0.1)),  # 72 s
        (0.03, 0.1, DAY, 7, math.ceil(math.sqrt(2 * 0.03 * 2 * DAY / 8) / 0.1)),
        (60.0, 1.0, 0.0, 100, 6000),  # at most 1 % of the time, however many failures there were
        (0.0, 0.1, 0.0, 0, 1),
        (0.03, 1e9, 0.0, 0, 1),
    ],
)
def test_the_best_number_of_steps(
    cost: float, step_seconds: float, seconds: float, failures: int, expected: int
) -> None:
    assert best_steps(cost, step_seconds, seconds, failures) == expected


def test_more_failures_never_make_checkpoints_rarer() -> None:
    intervals = [best_steps(1.0, 0.5, DAY, failures) for failures in range(50)]
    assert intervals == sorted(intervals, reverse=True)


def test_a_fixed_interval_counts_steps_and_auto_waits_for_its_first_cost() -> None:
    fixed, auto = CheckpointInterval(4, 6), CheckpointInterval(None, 6)
    assert [step for step in range(7, 21) if fixed.is_due(step)] == [8, 12, 16, 20]
    first = next(step for step in range(7, 100) if auto.is_due(step))
    assert first == 6 + FIRST_STEPS
    clock = Clock(0.0)
    for _ in range(10):
        clock.count(1)
    time.sleep(0.05)
    assert auto.agree("a problem", first, clock, time.perf_counter() - 0.02) == "a problem"
    assert not auto.is_due(first + 1)
    assert auto.is_due(first + 10**9)
    assert fixed.agree(None, 8, clock, 0.0) is None


def line(event: str, attempt: int, code: str | None = None) -> dict[str, Any]:
    return {"event": event, "attempt": attempt, "code": code}


def test_failures_of_the_machine_are_counted_and_other_ends_are_not() -> None:
    lines = [line("start", 1), line("start", 2), line("end", 2, "connection_lost"), line("start", 3)]
    lines += [line("end", 3, "stop_file"), line("start", 4), line("end", 4, "error"), line("start", 5)]
    assert count_failures(lines) == 2  # the first was killed; the newest has just begun
    assert count_failures([]) == count_failures(lines[:1]) == 0


def test_the_key() -> None:
    assert resolved({"checkpoint": {"every": "auto"}}).checkpoint.every == "auto"
    with pytest.raises(UserError, match=r"checkpoint\.every: .*must be a duration: .* like 20ep or 500st; or auto"):
        resolved({"checkpoint": {"every": "often"}})
