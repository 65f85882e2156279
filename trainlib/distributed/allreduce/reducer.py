"""Bringing the gradients of all ranks together: the interface that a training step uses, and its plain implementation.

A global batch is cut into shards. In plain data parallelism a shard is a rank's slice of the batch; in elastic mode
(see `elastic`) a rank computes several virtual shards. A training step drives a reducer like this:

    reducer.start_step()
    for each shard of this rank:
        with reducer.shard(shard):
            for each micro-batch of the shard:
                with reducer.micro_batch(is_last=...):
                    forward and backward pass
                reducer.after_backward(number of samples)
    reducer.finish_step()            # now every rank's parameters hold the gradient of the global batch
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainlib.distributed.pace.pace import NoPace, Pace

_NOTHING: AbstractContextManager[None] = nullcontext()


class Reducer(Protocol):
    """What a training step needs of a way to add up gradients over ranks.

    num_shards            number of shards that every global batch is cut into
    shard_name            a shard in messages, before its number: "on rank", "in virtual shard"
    gradient_scale        factor for each shard's loss, to undo a division that the reducer makes
    runs_empty_shards     True if a shard without samples must make a forward and backward pass all the same
    fixes_micro_batches   True if no rank may choose other micro-batches, as all ranks' bits depend on them
    """

    num_shards: int
    shard_name: str
    gradient_scale: int
    runs_empty_shards: bool
    fixes_micro_batches: bool

    def start_step(self) -> None:
        """Prepare for the first backward pass of a step."""

    def shard(self, shard: int) -> AbstractContextManager[None]:
        """Return a context for the backward passes of one shard."""

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Return a context for one forward and backward pass; `is_last` tells that it is the step's last one."""

    def after_backward(self, num_samples: int) -> None:
        """Take in what a pass over so many samples did to the model's buffers."""

    def finish_step(self) -> None:
        """Leave the gradient of the global batch in every rank's parameters."""

    def needs_warm_up(self) -> bool:
        """Return True if one backward pass must be made before the first step, for later ones to add in one order."""

    def require_same_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise RanksDifferError, on every rank, where ranks that must hold the same bits do not. A collective."""

    def rebuilt(self, model: nn.Module) -> Reducer:
        """Return a reducer like this one for the parameters that require gradients now.

        model   the model, wrapped anew where it is wrapped for the other ranks
        """


class DataParallelReducer:
    """The reducer of plain data parallelism: DistributedDataParallel averages over ranks in the last backward pass.

    The average over W ranks of W times each rank's shard is the sum of the shards.
    """

    shard_name = "on rank"
    runs_empty_shards = True  # all ranks must come to the all-reduce

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, pace: Pace | NoPace, *, fixes_micro_batches: bool = False
    ):
        self.fixes_micro_batches = fixes_micro_batches
        self.num_shards = self.gradient_scale = accelerator.num_processes
        self._accelerator = accelerator
        self._model, self._pace = model, pace
        self._is_watched = False

    def start_step(self) -> None:
        """Have the waits for other ranks left out of this rank's own time, from the first step on."""
        if not self._is_watched and isinstance(self._pace, Pace) and isinstance(self._model, DistributedDataParallel):
            self._pace.watch(self._model)
        self._is_watched = True

    def shard(self, shard: int) -> AbstractContextManager[None]:
        """Return an empty context: a rank has one shard."""
        return _NOTHING

    def micro_batch(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Return a context in which ranks communicate only in the last backward pass."""
        if is_last:
            return _NOTHING
        context: AbstractContextManager[None] = self._accelerator.no_sync(self._model)
        return context

    def after_backward(self, num_samples: int) -> None:
        """Do nothing: each rank's buffers are its own until `broadcast_buffers`."""

    def finish_step(self) -> None:
        """Do nothing: the last backward pass has averaged the gradients."""

    def needs_warm_up(self) -> bool:
        """Return True with several ranks.

        DistributedDataParallel lays out its buckets anew after the first backward pass, in the order in which gradients
        came, and the layout decides in which order the ranks' gradients are added. Without a pass before it, the first
        step after a resume would add three or more ranks in another order than the uninterrupted run did.
        """
        return bool(self.num_shards > 1)

    def require_same_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Do nothing: BatchNorm statistics differ between ranks here, and rank 0's are the model's."""

    def rebuilt(self, model: nn.Module) -> DataParallelReducer:
        """Return a reducer for the model in its new wrapper."""
        return DataParallelReducer(self._accelerator, model, self._pace, fixes_micro_batches=self.fixes_micro_batches)
