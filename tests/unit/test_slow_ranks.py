"""Which ranks are named as slow, and what of a rank's time is its own: by a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from trainlib.distributed.pace.slow_ranks import SlowRanks
from trainlib.distributed.pace.stopwatch import HostMarks, Stopwatch

DEVICES = ["rank 0 on host a, CPU", "rank 1 on host a, CPU", "rank 2 on host b, CPU"]


class Time:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


def named_after(
    seconds: float, of_rank: Callable[[int, float], float], *, between_rows: float = 1.0, samples: float = 10.0
) -> list[tuple[float, str]]:
    """What is said, and when, while rows come; `of_rank` gives a rank's own time per sample at a moment."""
    time = Time()
    judge = SlowRanks(DEVICES, time)
    said = []
    for _ in range(int(seconds / between_rows)):
        time.pass_(between_rows)
        passed = time.now - 100.0
        said += [(passed, each) for each in judge.add([[samples * of_rank(r, passed), samples] for r in range(3)])]
    return said


@pytest.mark.parametrize("between_rows", [0.01, 1.0, 10.0, 30.0])
def test_a_rank_at_two_thirds_of_the_speed_is_named_once_within_two_minutes(between_rows: float) -> None:
    said = named_after(300, lambda rank, at: 1.5 if rank == 2 else 1.0, between_rows=between_rows)
    assert [sentence for _, sentence in said] == ["rank 2 on host b, CPU: 1.50 times the median's time per sample"]
    assert 60 <= said[0][0] <= 120


@pytest.mark.parametrize(
    "of_rank",
    [
        lambda rank, at: 1.0,
        lambda rank, at: 1.09 if rank == 1 else 1.0,
        lambda rank, at: 3.0 if rank == 1 and at < 50 else 1.0,  # not for a minute
        lambda rank, at: 20.0 if rank == 1 and at % 60 < 8 else 1.0,  # a pause in each minute
        lambda rank, at: 5.0,  # all of them
        lambda rank, at: 2.0 if int(at / 20) % 3 == rank else 1.0,  # each in turn
    ],
)
def test_nobody_is_named_who_is_not_slow_for_a_minute(of_rank: Callable[[int, float], float]) -> None:
    assert named_after(600, of_rank) == []


def test_who_becomes_slow_again_is_named_again() -> None:
    said = named_after(400, lambda rank, at: 1.0 if rank or 150 < at < 200 else 2.0)
    assert len(said) == 2
    assert all(sentence.startswith("rank 0") for _, sentence in said)


def test_ranks_without_samples_are_not_compared() -> None:
    time = Time()
    judge = SlowRanks(DEVICES, time)
    for _ in range(20):
        time.pass_(10)
        assert judge.add([[1.0, 10.0], [0.0, 0.0], [0.0, 0.0]]) == []
    assert judge.now == ""


def test_a_rank_with_fewer_samples_in_a_step_is_not_slow_because_each_takes_longer() -> None:
    time = Time()
    judge = SlowRanks(DEVICES, time)
    for _ in range(20):
        time.pass_(10)
        assert judge.add([[5.0, 300.0], [5.0, 300.0], [4.9, 200.0]]) == []


def test_only_own_work_is_measured_and_of_several_shards_the_first() -> None:
    time = Time()
    watch = Stopwatch(HostMarks(time))
    for _ in range(2):
        watch.resume()
        time.pass_(2)  # of its own
        watch.end_shard(4)
        time.pass_(30)  # other shards, and other ranks
    assert watch.take() == (4.0, 8.0)
    assert watch.take() == (0.0, 0.0)


@pytest.mark.parametrize(("counts_fetching", "expected"), [(True, 8.0), (False, 2.0)])
def test_the_wait_for_batches_counts_where_ranks_prepare_as_many(counts_fetching: bool, expected: float) -> None:
    time = Time()
    watch = Stopwatch(HostMarks(time), counts_fetching=counts_fetching)

    def batches() -> Iterator[int]:
        for number in range(2):
            time.pass_(3)
            yield number

    for _ in watch.fetched(batches()):
        time.pass_(1)
        watch.end_shard(1)
        time.pass_(50)
        watch.resume()
        watch.pause()
    assert watch.take() == (expected, 2.0)


class Wrapper(nn.Module):
    """Waits for others before the module is called, as DistributedDataParallel does where it has buffers."""

    def __init__(self, module: nn.Module, wait: Callable[[], None]):
        super().__init__()
        self.module, self._wait = module, wait

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self._wait()
        result: torch.Tensor = self.module(inputs)
        return result


def test_the_waits_of_a_wrapper_for_other_ranks_are_left_out() -> None:
    time = Time()
    first, last = nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2)
    module = nn.Sequential(first, last)
    module.register_forward_hook(lambda *_: time.pass_(1))
    last.weight.register_hook(lambda gradient: time.pass_(2))
    first.weight.register_post_accumulate_grad_hook(lambda parameter: time.pass_(70))  # where others are waited for
    wrapper = Wrapper(module, lambda: time.pass_(50))
    watch = Stopwatch(HostMarks(time))
    watch.watch(wrapper)  # type: ignore[arg-type]
    wrapper(torch.randn(4, 2)).sum().backward()  # as in an evaluation: it does not run then
    assert watch.take() == (0.0, 0.0)
    for _ in range(2):
        watch.resume()
        wrapper(torch.randn(4, 2)).sum().backward()
        watch.end_shard(4)
    assert watch.take() == (6.0, 8.0)
