"""The batch plan for any number of samples, batch size and world size: drawn by hypothesis."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as some

from trainlib.data.batches.plan import Plan
from trainlib.data.batches.rank_slice import RankSlice, split_micro_batches, split_range
from trainlib.data.identity.listing import identities
from trainlib.data.identity.splits import limit_samples, split_validation

sizes = some.integers(0, 300)
positive = some.integers(1, 40)
seeds = some.integers(0, 2**31 - 1)


@some.composite
def plans(draw: some.DrawFn) -> Plan:
    """Sample indices that are not 0, 1, 2, ..., so that a plan cannot take positions for them."""
    batch_size = draw(positive)
    ids_N = torch.arange(draw(some.integers(batch_size, 300))) * 3 + 5
    return Plan(ids_N, draw(seeds), batch_size, draw(some.booleans()), draw(some.booleans()), total_steps=30)


@given(plans(), some.integers(0, 1000))
def test_an_epoch_holds_every_sample_once(plan: Plan, epoch: int) -> None:
    batches = plan.batches(epoch)
    ids = torch.cat(batches).tolist()
    dropped = len(plan.ids_N) % plan.global_batch_size if plan.drop_last else 0
    assert len(ids) == len(set(ids)) == len(plan.ids_N) - dropped
    assert set(ids) <= set(plan.ids_N.tolist())
    assert len(batches) == plan.steps_per_epoch
    assert all(len(batch) == plan.global_batch_size for batch in batches[:-1])
    assert 0 < len(batches[-1]) <= plan.global_batch_size
    assert plan.shuffle or ids == plan.ids_N.tolist()[: len(ids)]


@given(plans(), some.integers(0, 200))
def test_a_run_that_begins_at_any_step_sees_the_same_batches(plan: Plan, step: int) -> None:
    """A plan made anew, asked for nothing before this step, against one that has gone through every epoch."""
    whole = [batch for epoch in range(step // plan.steps_per_epoch + 1) for batch in plan.batches(epoch)]
    resumed = Plan(plan.ids_N, plan.seed, plan.global_batch_size, plan.shuffle, plan.drop_last, plan.total_steps)
    epoch = resumed.epoch_of(step)
    batch = resumed.batches(epoch)[step - epoch * resumed.steps_per_epoch]
    assert torch.equal(batch, whole[step])
    steps_in_epoch = len(resumed.batches(epoch))
    assert resumed.ends_epoch(step) == (step + 1 - epoch * steps_in_epoch == steps_in_epoch)


@given(plans(), some.integers(0, 50), some.integers(1, 9), some.one_of(some.none(), positive))
def test_the_ranks_together_compute_each_batch_once(
    plan: Plan, epoch: int, world_size: int, micro_batch_size: int | None
) -> None:
    ranks = [RankSlice(rank, world_size, micro_batch_size) for rank in range(world_size)]
    for batch in plan.batches(epoch)[:3]:
        micro_batches = [rank.micro_batches(batch) for rank in ranks]
        assert torch.equal(torch.cat([each for of_rank in micro_batches for each in of_rank]), batch)
        assert micro_batch_size is None or all(len(each) <= micro_batch_size for one in micro_batches for each in one)
        assert all(len(of_rank) >= 1 for of_rank in micro_batches)  # as each rank takes part in every step


@given(plans(), some.integers(1, 8), some.data())
def test_virtual_shards_are_the_same_for_any_number_of_ranks(
    plan: Plan, virtual_shards: int, data: some.DataObject
) -> None:
    world_size = data.draw(some.integers(1, virtual_shards))
    batch = plan.batches(0)[-1]
    shards = [
        (shard, ids.tolist())
        for rank in range(world_size)
        for shard, ids in RankSlice(rank, world_size, None, virtual_shards).split(batch, None)
    ]
    assert shards == [(shard, ids.tolist()) for shard, ids in RankSlice(0, 1, None, virtual_shards).split(batch, None)]


@given(sizes, positive, positive)
def test_ranges_are_split_into_even_parts(n: int, num_parts: int, factor: int) -> None:
    parts = [list(range(n))[split_range(n, num_parts, index)] for index in range(num_parts)]
    assert [sample for part in parts for sample in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts[0]) == max(map(len, parts))
    finer = [list(range(n))[split_range(n, num_parts * factor, index)] for index in range(num_parts * factor)]
    for index, part in enumerate(parts):  # splitting twice agrees with splitting once
        assert part == [sample for piece in finer[index * factor : (index + 1) * factor] for sample in piece]


@given(sizes, some.one_of(some.none(), positive))
def test_micro_batches_hold_a_shard_in_its_order(n: int, size: int | None) -> None:
    micro_batches = split_micro_batches(torch.arange(n), size)
    assert torch.equal(torch.cat(micro_batches), torch.arange(n))
    assert len(micro_batches) == (max(1, -(-n // size)) if size else 1)


labels = some.lists(some.integers(0, 5), min_size=2, max_size=200)
fractions = some.floats(0, 1, exclude_max=True)


@given(labels, fractions, seeds)
def test_validation_has_its_share_of_every_class(labels: list[int], fraction: float, seed: int) -> None:
    train, val = split_validation(torch.tensor(labels), fraction, seed)
    assert sorted(train.tolist() + val.tolist()) == list(range(len(labels)))
    assert (len(val) >= 1) == (fraction > 0)
    for label in {label for label in labels if labels.count(label) > 1}:
        held_out, n = sum(labels[i] == label for i in val.tolist()), labels.count(label)
        assert held_out == (min(max(round(n * fraction), 1), n - 1) if fraction else 0)


@given(labels, some.integers(0, 5), fractions, seeds, some.sampled_from(["stratified", "random"]), some.data())
def test_a_sample_that_is_added_moves_at_most_one_other(
    labels: list[int], label: int, fraction: float, seed: int, split: str, data: some.DataObject
) -> None:
    names = [f"picture {i}" for i in range(len(labels))]
    place = data.draw(some.integers(0, len(names)))

    def held_out(labels: list[int], names: list[str]) -> set[str]:
        ids = split_validation(torch.tensor(labels), fraction, seed, split, identities(names))[1]
        return {names[i] for i in ids.tolist()}

    before = held_out(labels, names)
    after = held_out([*labels[:place], label, *labels[place:]], [*names[:place], "new", *names[place:]])
    assert len((before ^ after) - {"new"}) <= 1 or max(map(labels.count, labels)) == 1


@given(some.integers(2, 300), fractions, seeds)
def test_a_split_over_all_samples_shares_none(n: int, fraction: float, seed: int) -> None:
    train, val = split_validation(torch.zeros(n, dtype=torch.int64), fraction, seed, "index")
    assert sorted(train.tolist() + val.tolist()) == list(range(n))
    assert len(train) >= 1
    assert (len(val) >= 1) == (fraction > 0)
    assert abs(len(val) - n * fraction) <= 1


@given(some.integers(1, 300), some.integers(1, 300), seeds)
def test_a_limit_takes_so_many_samples_in_their_order(n: int, limit: int, seed: int) -> None:
    ids_N = torch.arange(n) * 7
    kept = limit_samples(ids_N, limit, seed).tolist()
    assert len(kept) == len(set(kept)) == min(n, limit)
    assert kept == sorted(kept)
    assert set(kept) <= set(ids_N.tolist())
