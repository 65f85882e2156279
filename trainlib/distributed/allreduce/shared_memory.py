"""Adds up the gradients of the processes of one machine, on CPUs, through memory that they share.

gloo sends them through TCP, also to a process on the same machine: where two processes train the tutorial CNN, that is
a seventh of each step. Here every rank writes into a slot of its own, all meet, and each adds up all slots, in the
order of ranks, so that all have the same bits.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainlib.distributed.channel import UnixSocketChannel, are_near, make_socket_folder
from trainlib.distributed.process_group import broadcast_object, gather_objects

CHUNK = 1 << 20  # bytes of a slot; what is longer is added up piece by piece


def enable_local_allreduce(model: torch.nn.Module, device: torch.device) -> None:
    """Have the gradients of `model` added up like this, where all its ranks are here and are few. A collective."""
    if (
        isinstance(model, DistributedDataParallel)
        and device.type == "cpu"
        and are_near()
        and (ranks := SharedMemoryReducer.open()) is not None
    ):
        # Without annotations, which torch would compare with its own.
        model.register_comm_hook(ranks, lambda ranks, bucket: _mean(ranks, bucket.buffer()))


def _mean(ranks: SharedMemoryReducer, values: Tensor) -> torch.futures.Future[Tensor]:
    """What DistributedDataParallel leaves of a bucket of gradients: the mean over ranks."""
    ranks.all_reduce(values)
    values.div_(ranks.world_size)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(values)
    return done


class SharedMemoryReducer:
    """One rank's side.

    There are two slots for each rank, used in turn. A rank comes to write into the first one again when all have been
    at the meeting for the second, and so are done with reading the first.
    """

    def __init__(self, slots: Tensor, rank: int, peers: UnixSocketChannel):
        """slots: uint8 [2, W, CHUNK], shared with all."""
        self.world_size = peers.size()
        self._slots = slots
        self._rank = rank
        self._peers = peers
        self._turn = 0

    @classmethod
    def open(cls) -> SharedMemoryReducer | None:
        """None, on every rank, where one of them cannot have its part. A collective."""
        rank, world_size = dist.get_rank(), dist.get_world_size()
        folder = broadcast_object(_with_slots(make_socket_folder(), world_size) if rank == 0 else None)
        if folder is None:
            return None
        slots: Tensor | None = None
        with suppress(OSError, RuntimeError):
            slots = torch.from_file(
                str(folder / "slots"), shared=True, size=2 * world_size * CHUNK, dtype=torch.uint8
            ).view(2, world_size, CHUNK)
        all_have = all(gather_objects(slots is not None))
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)  # the memory stays as long as it is used
        peers = UnixSocketChannel.open() if all_have else None
        return cls(slots, rank, peers) if slots is not None and peers is not None else None

    def all_reduce(self, values: Tensor) -> None:
        """Replace contiguous values by their sum over all ranks. Raises RuntimeError where another one is gone."""
        for part in torch.split(values.view(-1), CHUNK // values.element_size()):
            slots = self._slots[self._turn].view(values.dtype)[:, : len(part)]
            self._turn = 1 - self._turn
            slots[self._rank].copy_(part)
            self._peers.barrier()
            torch.add(slots[0], slots[1], out=part)
            for slot in slots[2:]:
                part.add_(slot)


def _with_slots(folder: Path | None, world_size: int) -> Path | None:
    """The folder, with a file for all slots, whose memory is there."""
    if folder is not None:
        try:
            with (folder / "slots").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 2 * world_size * CHUNK)
        except (OSError, AttributeError):
            shutil.rmtree(folder, ignore_errors=True)
            return None
    return folder
