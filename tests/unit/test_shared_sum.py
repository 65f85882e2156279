"""Gradients of the ranks of one machine are added up in memory that they share; nothing but the way is another."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import ranks
import torch
from parts import build_trainer, make_dataset, resolved

from trainlib.distributed import process_group
from trainlib.distributed.allreduce import shared_memory
from trainlib.distributed.allreduce.shared_memory import SLOT_BYTES, SharedMemoryAllReduce
from trainlib.distributed.consensus.channel import GlooChannel, UnixSocketChannel, are_all_local, open_channel
from trainlib.distributed.process_group import gather_objects
from trainlib.runs.files.scratch import SHARED_MEMORY
from trainlib.training.step.train_step import train_step
from trainlib.training.step.update import UpdateStatus

CONFIG = {"data": {"name": "synthetic", "val_fraction": 0, "augment": {}}, "train": {"steps": 3, "batch_size": 12}}
SIZES = (1, 1000, SLOT_BYTES // 4, SLOT_BYTES // 4 + 1, 3 * SLOT_BYTES // 4 + 5)  # of float32: up to several slots


def values_of(rank: int, size: int, turn: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * turn + rank)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def _sums_are_right() -> int:
    with process_group.joined(resolved(CONFIG).train) as accelerator:
        rank, world_size = accelerator.process_index, accelerator.num_processes
        opened = SharedMemoryAllReduce.open()
        assert opened is not None
        for turn, size in enumerate(SIZES * 3):
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                expected = values_of(0, size, turn, dtype)
                for other in range(1, world_size):
                    expected = expected + values_of(other, size, turn, dtype)
                values = values_of(rank, size, turn, dtype)
                if rank == turn % world_size:
                    time.sleep(0.002)  # whoever comes late
                divisor = 1 + turn % 3
                opened.all_reduce(values, divisor)
                assert torch.equal(values, expected / divisor), (size, dtype)
    return 0


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_rank_has_the_sum_in_the_order_of_ranks(tmp_path: Path, world_size: int) -> None:
    assert ranks.run(_sums_are_right, world_size=world_size, cwd=tmp_path) == [0] * world_size, ranks.console(tmp_path)


def _one_step(through_memory: bool) -> int:
    ranks.replace(shared_memory, "are_all_local", lambda: through_memory and are_all_local())
    config = resolved(CONFIG)
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, make_dataset(24), accelerator, None)
        assert bool(trainer.state.model._comm_hooks) is through_memory
        [micro_batches] = trainer.samples.train.train_batches(
            trainer.plan.batches(0)[:1], 0, trainer.samples.augmentation
        )
        assert train_step(trainer.state, 0, micro_batches, 12.0).status is UpdateStatus.APPLIED
        weights = [parameter.detach() for parameter in trainer.state.parameters]
        torch.save(weights, f"weights-{through_memory}-{accelerator.process_index}.pt")
    return 0


def test_a_step_has_the_bits_that_it_has_through_gloo(tmp_path: Path) -> None:
    """From the same weights; what two ranks have can be added up in one order only."""
    for through_memory in (True, False):
        assert ranks.run(_one_step, through_memory, world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)
    first, *others = [torch.load(path) for path in sorted(tmp_path.glob("weights-*.pt"))]
    assert len(others) == 3
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def _flags_are_told() -> int:
    config = resolved(CONFIG)
    with process_group.joined(config.train) as accelerator:
        channel = open_channel(config.train)
        assert isinstance(channel, UnixSocketChannel)
        assert channel.size() == accelerator.num_processes
        for asked in (None, 0, 1, None, 2, None):
            channel.send_flag(accelerator.process_index == asked)
            assert channel.any_flag() is (asked is not None)
    return 0


def test_all_learn_of_a_flag_in_the_same_turn(tmp_path: Path) -> None:
    assert ranks.run(_flags_are_told, world_size=3, cwd=tmp_path) == [0, 0, 0], ranks.console(tmp_path)


def _one_rank_dies() -> int:
    with process_group.joined(resolved(CONFIG).train) as accelerator:
        opened = SharedMemoryAllReduce.open()
        assert opened is not None
        opened.all_reduce(torch.ones(3))
        if accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(RuntimeError, match="Connection closed by peer"):  # by which a lost rank is told everywhere
            opened.all_reduce(torch.ones(3))
        os._exit(7)
    return 0


def test_a_rank_that_dies_is_noticed_at_once(tmp_path: Path) -> None:
    assert ranks.run(_one_rank_dies, world_size=2, cwd=tmp_path) == [7, -signal.SIGKILL]


def _no_room(rank_without: int) -> int:
    """One rank cannot open its door, or the first one has no memory to share: all do without, and nobody waits."""
    config = resolved(CONFIG)
    with process_group.joined(config.train) as accelerator:
        if rank_without < 0:
            ranks.replace(shared_memory, "_with_slots", lambda scratch, world_size: scratch.remove())
            assert gather_objects(SharedMemoryAllReduce.open() is None) == [True, True]
        if accelerator.process_index == rank_without:

            class Closed(socket.socket):
                def bind(self, address: object) -> None:
                    raise OSError(28, "No space left on device")

            ranks.replace(socket, "socket", Closed)
        if rank_without >= 0:
            assert gather_objects(UnixSocketChannel.open() is None) == [True, True]
            assert isinstance(open_channel(config.train), GlooChannel)
    return 0


@pytest.mark.parametrize("rank_without", [-1, 0, 1])
def test_where_one_rank_cannot_all_do_without(tmp_path: Path, rank_without: int) -> None:
    assert ranks.run(_no_room, rank_without, world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)


@pytest.mark.parametrize(
    ("world_size", "here", "near"), [("2", "2", True), ("8", "8", True), ("9", "9", False), ("4", "2", False)]
)
def test_only_few_ranks_that_are_all_here_share(
    monkeypatch: pytest.MonkeyPatch, world_size: str, here: str, near: bool
) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: int(world_size))
    assert are_all_local({"LOCAL_WORLD_SIZE": here}) is near
    assert not are_all_local({})


def test_nothing_is_left_in_memory(tmp_path: Path) -> None:
    before = set(SHARED_MEMORY.glob("trainlaunch-*")) if SHARED_MEMORY.is_dir() else set()
    assert ranks.run(_flags_are_told, world_size=3, cwd=tmp_path) == [0, 0, 0]
    assert (set(SHARED_MEMORY.glob("trainlaunch-*")) if SHARED_MEMORY.is_dir() else set()) <= before
