"""Adding up gradients of the few ranks of one machine, on CPUs, through memory that they share.

gloo sends them through TCP, also to a process on the same machine: where two processes train the tutorial CNN, that is
a seventh of each step. Here every rank writes into a slot of its own; after a barrier each adds up all slots, or its
part of them for all, in the order of ranks, so that all have the same bits.
"""

from __future__ import annotations

import os
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from trainlib.distributed.consensus.channel import UnixSocketChannel, are_all_local
from trainlib.distributed.pace.pace import NoPace, Pace
from trainlib.distributed.process_group import broadcast_object, gather_objects
from trainlib.runs.files.scratch import Scratch, make_scratch

SLOT_BYTES = 1 << 20  # longer values are added up piece by piece


def enable_local_allreduce(model: torch.nn.Module, device: torch.device, pace: Pace | NoPace) -> None:
    """Let DistributedDataParallel add up gradients through shared memory, where all ranks are local CPU processes.

    pace   is told of the waits for other ranks
    A collective. Does nothing for a model that is not wrapped, on GPUs, and with ranks on other machines.
    """
    if (
        isinstance(model, DistributedDataParallel)
        and model.process_group.size() > 1  # torchrun makes a group of one process as well
        and device.type == "cpu"
        and are_all_local()
        and (memory := SharedMemoryAllReduce.open()) is not None
    ):
        # Without annotations, which torch would compare with its own.
        model.register_comm_hook(memory, lambda memory, bucket: _mean(memory, bucket.buffer(), pace))


def _mean(memory: SharedMemoryAllReduce, values: Tensor, pace: Pace | NoPace) -> torch.futures.Future[Tensor]:
    """Replace a bucket of gradients by its mean over ranks, which is what DistributedDataParallel expects."""
    was_working = pace.pause()  # False for the bucket of the gradients that come last
    memory.all_reduce(values, memory.world_size)
    if was_working:
        pace.resume()
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(values)
    return done


class SharedMemoryAllReduce:
    """One rank's view of the slots in shared memory, two for each rank, used in turn.

    A rank writes into its first slot again only after the barrier for the second one, when all ranks have read it.
    """

    def __init__(self, slots: Tensor, rank: int, channel: UnixSocketChannel):
        """slots: uint8 [2, W, SLOT_BYTES], shared with all ranks."""
        self.world_size = channel.size()
        self._slots = slots
        self._rank = rank
        self._channel = channel
        self._turn = 0

    @classmethod
    def open(cls) -> SharedMemoryAllReduce | None:
        """Map the shared slots; return None, on every rank, where one of them cannot. A collective."""
        rank, world_size = dist.get_rank(), dist.get_world_size()
        scratch = _with_slots(make_scratch(), world_size) if rank == 0 else None
        folder = broadcast_object(scratch.path if scratch else None)
        if folder is None:
            return None
        slots: Tensor | None = None
        with suppress(OSError, RuntimeError):
            slots = torch.from_file(
                str(folder / "slots"), shared=True, size=2 * world_size * SLOT_BYTES, dtype=torch.uint8
            ).view(2, world_size, SLOT_BYTES)
        all_mapped = all(gather_objects(slots is not None))
        if scratch is not None:
            scratch.remove()  # the memory stays as long as it is used
        channel = UnixSocketChannel.open() if all_mapped else None
        return cls(slots, rank, channel) if slots is not None and channel is not None else None

    def all_reduce(self, values: Tensor, divisor: int = 1) -> None:
        """Replace contiguous values by their sum over all ranks, divided by a number.

        Of long values, each of three or more ranks adds up a part for all: the same sums, with less to read.
        Raises RuntimeError where another rank is gone.
        """
        pieces = torch.split(values.view(-1), SLOT_BYTES // values.element_size())
        for piece in pieces:
            slots = self._slots[self._turn].view(values.dtype)[:, : len(piece)]
            self._turn = 1 - self._turn
            slots[self._rank].copy_(piece)
            self._channel.barrier()
            if self.world_size == 2 or len(pieces) == 1:
                self._add_up(piece, slots, divisor)
                continue
            parts, slots_of_parts = piece.tensor_split(self.world_size), slots.tensor_split(self.world_size, dim=1)
            self._add_up(parts[self._rank], slots_of_parts[self._rank], divisor)
            slots_of_parts[self._rank][self._rank].copy_(parts[self._rank])
            self._channel.barrier()
            for rank, part in enumerate(parts):
                part.copy_(slots_of_parts[rank][rank])

    def _add_up(self, own: Tensor, slots: Tensor, divisor: int) -> None:
        """Replace this rank's values by the sum of all ranks' in their order, divided while it is in the caches."""
        first, second = (own if rank == self._rank else slots[rank] for rank in (0, 1))
        torch.add(first, second, out=own)
        for slot in slots[2:]:
            own.add_(slot)
        if divisor != 1:
            own.div_(divisor)


def _with_slots(scratch: Scratch | None, world_size: int) -> Scratch | None:
    """Make a file for all slots in the folder and return the folder; None where there is not enough memory."""
    if scratch is not None:
        try:
            with (scratch.path / "slots").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 2 * world_size * SLOT_BYTES)
        except (OSError, AttributeError):
            scratch.remove()
            return None
    return scratch
