"""The batch plan: every sample once an epoch, the same global batches at every world size."""

from __future__ import annotations

import itertools

import pytest
import torch

from trainlib.data.batches.plan import Plan, steps_per_epoch, to_steps
from trainlib.data.batches.rank_slice import split_micro_batches, split_range
from trainlib.data.identity.splits import limit_samples, split_validation


def make_plan(
    n: int = 97, batch_size: int = 10, *, shuffle: bool = True, drop_last: bool = False, seed: int = 0
) -> Plan:
    return Plan(torch.arange(n) * 3, seed, batch_size, shuffle, drop_last, total_steps=30)


@pytest.mark.parametrize(("n", "parts"), list(itertools.product([0, 1, 5, 64, 97], [1, 2, 3, 4, 8])))
def test_shares_cover_everything_once_and_evenly(n: int, parts: int) -> None:
    micro_batches = [list(range(n))[split_range(n, parts, i)] for i in range(parts)]
    assert list(itertools.chain(*micro_batches)) == list(range(n))
    assert max(map(len, micro_batches)) - min(map(len, micro_batches)) <= 1


@pytest.mark.parametrize("n", [1, 5, 63, 64, 97])
def test_shares_of_shares_agree(n: int) -> None:
    for rank in range(2):
        whole = list(range(n))[split_range(n, 2, rank)]
        quarters = [list(range(n))[split_range(n, 8, rank_slice)] for rank_slice in range(rank * 4, rank * 4 + 4)]
        assert whole == list(itertools.chain(*quarters))


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_holds_every_sample_once(drop_last: bool) -> None:
    plan = make_plan(drop_last=drop_last)
    ids = torch.cat(plan.batches(4)).tolist()
    assert len(ids) == len(set(ids)) == (90 if drop_last else 97)
    assert set(ids) <= set(plan.ids_N.tolist())
    assert [len(batch) for batch in plan.batches(4)] == [10] * 9 + ([] if drop_last else [7])


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert torch.equal(torch.cat(make_plan().batches(3)), torch.cat(make_plan().batches(3)))
    assert not torch.equal(torch.cat(make_plan().batches(3)), torch.cat(make_plan().batches(4)))
    assert not torch.equal(torch.cat(make_plan().batches(3)), torch.cat(make_plan(seed=1).batches(3)))


def test_the_order_is_that_of_every_version() -> None:
    """A run that is resumed with a newer version must find the order that it began with."""
    plan = Plan(torch.arange(12), 7, 4, shuffle=True, drop_last=False, total_steps=30)
    assert torch.cat(plan.batches(2)).tolist() == [3, 0, 4, 10, 1, 2, 6, 9, 7, 8, 11, 5]


def test_without_shuffling_samples_come_in_their_own_order() -> None:
    assert torch.cat(make_plan(shuffle=False).batches(2)).tolist() == [i * 3 for i in range(97)]


def test_epochs_and_their_last_steps() -> None:
    plan = make_plan()
    assert [plan.epoch_of(step) for step in (0, 9, 10, 25)] == [0, 0, 1, 2]
    assert [step for step in range(30) if plan.ends_epoch(step)] == [9, 19, 29]


@pytest.mark.parametrize(("duration", "steps"), [("1ep", 7), ("20ep", 140), ("500st", 500), ("1st", 1)])
def test_durations_become_steps(duration: str, steps: int) -> None:
    assert to_steps(duration, 7) == steps


@pytest.mark.parametrize(
    ("n", "size", "drop", "steps"), [(10, 5, False, 2), (11, 5, False, 3), (11, 5, True, 2), (5, 5, True, 1)]
)
def test_steps_per_epoch(n: int, size: int, drop: bool, steps: int) -> None:
    assert steps_per_epoch(n, size, drop) == steps


@pytest.mark.parametrize(("n", "fraction", "num_val"), [(100, 0.0, 0), (100, 0.1, 10), (5, 0.01, 1), (2, 0.9, 1)])
def test_validation_split_is_disjoint_and_complete(n: int, fraction: float, num_val: int) -> None:
    train, val = split_validation(torch.zeros(n, dtype=torch.int64), fraction, seed=0)
    assert len(val) == num_val
    assert sorted(train.tolist() + val.tolist()) == list(range(n))
    assert train.tolist() == sorted(train.tolist())


def test_validation_split_depends_on_the_seed() -> None:
    labels_N = torch.arange(100) % 3
    assert split_validation(labels_N, 0.5, 0)[1].tolist() != split_validation(labels_N, 0.5, 1)[1].tolist()


def test_limit_keeps_order_and_takes_a_random_subset() -> None:
    ids = torch.arange(0, 1000, 7)
    some = limit_samples(ids, 20, seed=0).tolist()
    assert len(set(some)) == 20
    assert some == sorted(some)
    assert set(some) <= set(ids.tolist())
    assert some != ids[:20].tolist()
    assert limit_samples(ids, None, seed=0) is ids


@pytest.mark.parametrize(
    ("n", "size", "sizes"), [(10, 4, [4, 4, 2]), (4, 4, [4]), (3, None, [3]), (0, 4, [0]), (0, None, [0])]
)
def test_micro_batches(n: int, size: int | None, sizes: list[int]) -> None:
    micro_batches = split_micro_batches(torch.arange(n), size)
    assert [len(micro_batch) for micro_batch in micro_batches] == sizes
    assert torch.equal(torch.cat(micro_batches), torch.arange(n))
