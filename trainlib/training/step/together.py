"""The virtual shards of one rank, computed together where layers need the statistics of all of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from trainlib.data.batches.loader import MicroBatch
from trainlib.distributed.allreduce.reducer import Reducer
from trainlib.distributed.shards.lockstep import Meet, run_in_lockstep
from trainlib.distributed.shards.pieces import PieceGather
from trainlib.errors import UserError
from trainlib.models.forward.synchronized_batchnorm import Moments, PieceMoments, join_moments, synchronized_layers

LossOf = Callable[[nn.Module, MicroBatch], Tensor]


class ShardsTogether:
    """A copy of the model for each virtual shard of this rank, with the same parameters and buffers of its own.

    The forward passes meet at each synchronised layer, and one backward pass goes through all of them. Each shard's
    gradients are then added up as if it had been computed alone. Activations and gradients of all shards of the rank
    are in memory at once.
    """

    def __init__(
        self, module: nn.Module, gather: PieceGather, device: torch.device, prepare: Callable[[nn.Module], nn.Module]
    ):
        """Copy the module. Raises UserError for one that cannot be copied.

        prepare   wraps a copy for the precision of the training
        """
        self._module, self._gather, self._device = module, gather, device
        self._replicas = [_replica(module) for _ in gather.own]
        self._prepared = [prepare(replica) for replica in self._replicas]

    def backward(
        self, micro_batches: Sequence[MicroBatch], loss_of: LossOf, backward: Callable[[Tensor], None], reducer: Reducer
    ) -> None:
        """Give the reducer the gradients of this rank's shards, and what their passes did to buffers. A collective.

        micro_batches   one for each shard
        loss_of         runs a model forward, and returns the weighted loss
        backward        runs the backward pass of a loss
        """
        # A rank without samples takes part with an image that stands for none.
        pieces = [micro_batch for micro_batch in micro_batches if not micro_batch.is_empty] or micro_batches[:1]
        replicas = self._replicas[: len(pieces)]
        for replica in replicas:
            _follow(replica, self._module)
        passes = [
            partial(_forward, replica, partial(loss_of, prepared, micro_batch))
            for replica, prepared, micro_batch in zip(replicas, self._prepared, pieces, strict=False)
        ]
        gather = partial(self._gather, pieces=[micro_batch.shard for micro_batch in pieces])
        losses = run_in_lockstep(passes, partial(join_moments, gather), self._device)
        backward(torch.stack(losses).sum())
        of_shard = {micro_batch.shard: replica for replica, micro_batch in zip(replicas, pieces, strict=True)}
        for micro_batch in micro_batches:
            with reducer.shard(micro_batch.shard):
                if not micro_batch.is_empty:
                    _hand_over(of_shard[micro_batch.shard], self._module)
                    reducer.after_backward(len(micro_batch.targets))
        for replica in replicas:
            replica.zero_grad()


def _forward(replica: nn.Module, loss: Callable[[], Tensor], meet: Meet[PieceMoments, Moments]) -> Tensor:
    for layer in synchronized_layers(replica):
        layer.join = meet
    return loss()


def _replica(module: nn.Module) -> nn.Module:
    """Return a copy that shares the memory of the parameters, whose gradients are its own."""
    shared = {id(p): nn.Parameter(p.detach(), requires_grad=p.requires_grad) for p in module.parameters()}
    try:
        return copy.deepcopy(module, shared)
    except Exception as error:  # a custom model may hold anything
        raise UserError(
            f"model.sync_batchnorm: got true, but {type(module).__name__} cannot be copied for the virtual shards of "
            f"elastic mode ({error}): leave it out, or use train.reproducibility=exact"
        ) from error


def _follow(replica: nn.Module, module: nn.Module) -> None:
    """Take over what may change between steps: buffers, train mode, and which parameters are trained."""
    for own, buffer in zip(replica.buffers(), module.buffers(), strict=True):
        own.copy_(buffer)
    for own_part, part in zip(replica.modules(), module.modules(), strict=True):
        own_part.training = part.training
    for own_parameter, parameter in zip(replica.parameters(), module.parameters(), strict=True):
        own_parameter.requires_grad_(parameter.requires_grad)


@torch.no_grad()
def _hand_over(replica: nn.Module, module: nn.Module) -> None:
    """Add the copy's gradients to the module's, and set the module's buffers to the copy's."""
    for own, parameter in zip(replica.parameters(), module.parameters(), strict=True):
        if own.grad is not None and parameter.grad is not None:
            parameter.grad.add_(own.grad)
    for own_buffer, buffer in zip(replica.buffers(), module.buffers(), strict=True):
        buffer.copy_(own_buffer)
