"""Whether another step and a checkpoint still fit before a job's end, on a clock that the test turns."""

import pytest

from trainlib.training.metrics import clock
from trainlib.training.metrics.clock import END_MARGIN, Clock


class Hands:
    """Stands in for `time`: stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_time_is_up_when_twice_the_longest_of_each_would_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands()
    monkeypatch.setattr(clock, "time", hands)
    watch = Clock(0.0)
    assert not watch.time_is_up(END_MARGIN)
    assert watch.time_is_up(END_MARGIN - 0.1)
    for seconds in (1.0, 5.0, 2.0):  # the second one with an evaluation in it
        hands.now += seconds
        watch.count(32)
    with watch.paused() as pause:
        hands.now += 20.0
    watch.saved(pause)
    assert not watch.time_is_up(END_MARGIN + 2 * 5.0 + 2 * 20.0)
    assert watch.time_is_up(END_MARGIN + 2 * 5.0 + 2 * 20.0 - 0.1)
