"""The parts of elastic mode by themselves: nodes of the tree, batch norm, and the bytes that a step sends."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import ranks
import torch
from parts import resolved
from paths import REPOSITORY

from trainlib.data.batches.rank_slice import shards_of_rank
from trainlib.distributed import process_group
from trainlib.distributed.allreduce.elastic import ElasticReducer, cover


def test_a_divisor_of_a_power_of_two_gives_each_rank_one_node() -> None:
    """Then the traffic is that of a ring all-reduce."""
    for world_size in (1, 2, 4, 8, 16):
        assert all(len(cover(shards_of_rank(16, world_size, rank))) == 1 for rank in range(world_size))
    assert [len(cover(shards_of_rank(8, 3, rank))) for rank in range(3)] == [2, 2, 1]


def test_batch_norm_makes_one_update_a_step_from_the_mean_of_its_shards() -> None:
    """Two shards of 3 and 5 samples, beside the definition of the running statistics."""
    module = torch.nn.BatchNorm1d(2)
    elastic = ElasticReducer(module, virtual_shards=2, world_size=1)
    samples = torch.arange(16.0).reshape(8, 2) ** 2
    elastic.start_step()
    for shard, part in enumerate((samples[:3], samples[3:])):
        with elastic.shard(shard):
            module(part).sum().backward()
            elastic.after_backward(len(part))
    elastic.finish_step()
    expected = 0.1 * (3 * samples[:3].mean(0) + 5 * samples[3:].mean(0)) / 8
    variance = 0.9 + 0.1 * (3 * samples[:3].var(0) + 5 * samples[3:].var(0)) / 8
    torch.testing.assert_close(module.running_mean, expected)
    torch.testing.assert_close(module.running_var, variance)
    assert module.num_batches_tracked == 1


def test_a_mask_of_infinities_stays_what_it_is() -> None:
    """That it has not changed cannot be told by a difference: of infinities that is no number."""
    module = torch.nn.BatchNorm1d(2)
    mask = torch.full((2, 2), -math.inf).triu(1)
    module.register_buffer("mask", mask.clone())
    elastic = ElasticReducer(module, virtual_shards=1, world_size=1)
    elastic.start_step()
    with elastic.shard(0):
        module(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).sum().backward()
        elastic.after_backward(2)
    elastic.finish_step()
    assert torch.equal(module.get_buffer("mask"), mask)
    torch.testing.assert_close(module.running_mean, torch.tensor([0.2, 0.3]))


def count_traffic(virtual_shards: int) -> None:
    """In each rank: one step of a module of a million parameters; rank 0 writes what each rank sent, as ratios.

    The kernel counts: what this process has sent on its TCP connections. Beside it, torch's own ring all-reduce.
    """
    import sys

    import torch.distributed as dist

    sys.path.append(str(REPOSITORY))
    from bench.elastic_cost import bytes_sent

    with process_group.joined(resolved({}).train) as accelerator:
        module = torch.nn.Linear(1000, 1000)
        world_size, rank = accelerator.num_processes, accelerator.process_index
        elastic = ElasticReducer(module, virtual_shards, world_size)

        def step() -> None:
            elastic.start_step()
            for shard in shards_of_rank(virtual_shards, world_size, rank):
                with elastic.shard(shard):
                    module(torch.ones(1, 1000)).sum().backward()
            elastic.finish_step()

        def sent_by(act: Callable[[], object]) -> int:
            act()  # connections are made
            dist.barrier()
            before = bytes_sent()
            act()
            return bytes_sent() - before

        gradient = torch.zeros(sum(p.numel() for p in module.parameters()))
        mine = (sent_by(step), sent_by(lambda: dist.all_reduce(gradient)), len(elastic._free))
        every = process_group.gather_objects(mine)
        if rank == 0:
            Path("sent.json").write_text(json.dumps({"sent": every, "bytes": gradient.nbytes}))


@pytest.mark.parametrize(("world_size", "factor"), [(2, 1.0), (4, 1.0), (3, 1.5)])
def test_a_step_sends_what_a_ring_all_reduce_sends(tmp_path: Path, world_size: int, factor: float) -> None:
    """Counted, within 5 percent: each rank holds one node of the tree; it sends it once, in chunks, then its own chunk.

    Three ranks hold two, two and one node of eight shards: a rank with two sends 1.5 times as much. In memory are at
    most 1 + log2(shards of a rank) vectors as large as the gradient.
    """
    assert ranks.run(count_traffic, 8, world_size=world_size, cwd=tmp_path) == [0] * world_size, ranks.console(tmp_path)
    found = json.loads((tmp_path / "sent.json").read_text())
    ring = 2 * (world_size - 1) / world_size * found["bytes"]
    for ours, torchs, vectors in found["sent"]:
        assert ours <= 1.05 * factor * ring
        assert torchs == pytest.approx(ring, rel=0.05), "the count is wrong"
        assert vectors <= 1 + math.ceil(math.log2(8 / world_size)) + 1
    assert max(ours for ours, _, _ in found["sent"]) >= 0.95 * factor * ring
