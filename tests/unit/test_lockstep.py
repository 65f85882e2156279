"""Functions that run in turn from one meeting to the next: what they hand in, draw and raise."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
import torch

from trainlib.distributed.shards.lockstep import Meet, run_in_lockstep
from trainlib.randomness import seed_generators

CPU = torch.device("cpu")


def test_each_meeting_has_the_values_of_all_in_order() -> None:
    meetings: list[Sequence[str]] = []

    def join(values: Sequence[str]) -> list[str]:
        meetings.append(values)
        return [value.upper() for value in values]

    def function(name: str) -> Callable[[Meet[str, str]], list[str]]:
        return lambda meet: [meet(f"{name}{number}") for number in range(3)]

    assert run_in_lockstep([function("a"), function("b")], join, CPU) == [["A0", "A1", "A2"], ["B0", "B1", "B2"]]
    assert meetings == [["a0", "b0"], ["a1", "b1"], ["a2", "b2"]]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_draws_what_it_would_draw_alone(count: int) -> None:
    def draws(seed: int, meet: Meet[None, None]) -> list[float]:
        seed_generators(seed, CPU)
        drawn = []
        for _ in range(4):
            drawn.append(float(torch.rand(())))
            meet(None)
        return drawn

    together = run_in_lockstep(
        [lambda meet, seed=seed: draws(seed, meet) for seed in range(count)],  # type: ignore[misc]
        lambda values: values,
        CPU,
    )
    assert together == [draws(seed, lambda value: None) for seed in range(count)]


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("meetings_before", [0, 1])
def test_an_error_of_one_ends_all(failing: int, meetings_before: int) -> None:
    def function(index: int, meet: Meet[int, int]) -> None:
        for meeting in range(3):
            if index == failing and meeting == meetings_before:
                raise torch.OutOfMemoryError("no room")
            meet(index)

    before = threading.active_count()
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        run_in_lockstep(
            [lambda meet, index=index: function(index, meet) for index in range(3)],  # type: ignore[misc]
            lambda values: values,
            CPU,
        )
    assert threading.active_count() == before


def test_an_error_at_a_meeting_ends_all() -> None:
    def join(values: Sequence[int]) -> Sequence[int]:
        raise ConnectionError(f"lost at {values}")

    before = threading.active_count()
    with pytest.raises(ConnectionError, match="lost at"):
        run_in_lockstep([lambda meet: meet(1), lambda meet: meet(2)], join, CPU)
    assert threading.active_count() == before


def test_other_numbers_of_meetings_are_a_fault() -> None:
    with pytest.raises(AssertionError, match="same number of meetings"):
        run_in_lockstep([lambda meet: meet(1), lambda meet: 2], lambda values: values, CPU)
