"""One optimizer step: a pure function of the weights, the batch, the seed and the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainlib.data.batches.loader import MicroBatch
from trainlib.distributed.allreduce.elastic import ElasticReducer
from trainlib.models import preserve_buffers
from trainlib.models.losses import count_correct
from trainlib.randomness import key, seed_generators
from trainlib.training.metrics.sums import MicroBatchResult, to_host
from trainlib.training.step.state import TrainState

NOTHING_SPECIAL = nullcontext()


@dataclass(frozen=True)
class StepResult:
    """What a step came to.

    measured    of each of this rank's micro-batches
    grad_norm   of the whole gradient, before clipping; the same on every rank
    applied     False where the gradient was not finite: weights, buffers and optimizer are as they were before; None
                where only the device knows yet: whether the gradient's norm and this rank's losses are finite
    norm_and_losses   the values of these, where they have been read
    """

    measured: Sequence[MicroBatchResult]
    grad_norm: Tensor
    applied: bool | None
    norm_and_losses: Sequence[float] = ()


def train_step(state: TrainState, step: int, micro_batches: Sequence[MicroBatch], denominator: float) -> StepResult:
    """Apply the gradient of the loss over one global batch.

    pieces       this rank's micro-batches
    denominator  of the whole global batch, which every rank knows from its labels

    Raises torch.OutOfMemoryError with everything as it was before.
    """
    measured: list[MicroBatchResult] = []
    if state.buffers:
        torch._foreach_copy_(state.buffers_before, state.buffers)
    try:
        if state.elastic is None:
            _backward_of_rank(state, step, micro_batches, denominator, measured)
        else:
            _backward_of_shards(state, state.elastic, step, micro_batches, denominator, measured)
    except torch.OutOfMemoryError:
        clear_gradients(state)
        _restore_buffers(state)
        raise
    result = _update(state, measured)
    if result.applied is False:
        _restore_buffers(state)
    return result


def _restore_buffers(state: TrainState) -> None:
    """BatchNorm took the batch into its statistics on the way forward."""
    if state.buffers:
        torch._foreach_copy_(state.buffers, state.buffers_before)


def _backward_of_rank(
    state: TrainState,
    step: int,
    micro_batches: Sequence[MicroBatch],
    denominator: float,
    measured: list[MicroBatchResult],
) -> None:
    """Leave the gradient of the global batch on every rank; only the last backward pass talks to the other ranks.

    DistributedDataParallel averages over ranks, so each rank's part is multiplied by the world size.
    """
    accelerator = state.accelerator
    seed_generators(key(step, accelerator.process_index, folded=state.step_key), accelerator.device)
    *earlier, last = micro_batches
    for micro_batch in earlier:
        with accelerator.no_sync(state.model):
            _backward(state, micro_batch, denominator, measured, factor=accelerator.num_processes)
    _backward(state, last, denominator, measured, factor=accelerator.num_processes)


def _backward_of_shards(
    state: TrainState,
    elastic: ElasticReducer,
    step: int,
    micro_batches: Sequence[MicroBatch],
    denominator: float,
    measured: list[MicroBatchResult],
) -> None:
    """The same in elastic mode, with the same bits at every world size."""
    elastic.start()
    for shard, cut in groupby(micro_batches, key=attrgetter("shard")):
        seed_generators(key(step, shard, folded=state.step_key), state.accelerator.device)
        with elastic.shard(shard):
            for micro_batch in cut:
                if not micro_batch.is_empty:
                    _backward(state, micro_batch, denominator, measured)
                    elastic.learned(len(micro_batch.cpu_labels_N))
    elastic.finish()


def _backward(
    state: TrainState, micro_batch: MicroBatch, denominator: float, measured: list[MicroBatchResult], factor: int = 1
) -> None:
    """Measure a piece, and add its gradient, by its share of the global denominator, to the gradients."""
    with frozen_batchnorm(state.classifier.module) if micro_batch.is_empty else NOTHING_SPECIAL:
        logits_NC = state.model(micro_batch.images_NCHW)
    part = 0.0 if micro_batch.is_empty else state.objective.denominator(micro_batch.cpu_labels_N)
    # With weight 0 any loss will do: it takes part in the backward pass and adds nothing.
    loss = state.objective(logits_NC, micro_batch.labels_N) if part else logits_NC.sum()
    if not micro_batch.is_empty:
        measured.append(measure(micro_batch, logits_NC, loss, part))
    weight = part / denominator * factor if part else 0.0
    if weight != 1.0 or state.accelerator.num_processes > 1:
        # 0 * loss is 0, and NaN where the loss is not finite: the reduced gradient then tells every rank.
        loss = loss * (weight + 0.0 * loss.detach())
    if state.accelerator.scaler is None:
        loss.backward()  # Accelerate's `backward` would add a division by 1 to the graph
    else:
        state.accelerator.backward(loss)


def warm_up(state: TrainState, dummy_input: Tensor) -> None:
    """One backward pass that changes nothing, before the first step. `dummy_input` is an input of `state.model`.

    DistributedDataParallel lays out its buckets anew after the first one, in the order in which gradients came, and the
    layout decides in which order the ranks' gradients are added: without this the first step after a resume would add
    three or more ranks in another order than the uninterrupted run did.
    """
    if state.accelerator.num_processes > 1 and state.elastic is None:
        with frozen_batchnorm(state.classifier.module):
            state.accelerator.backward(state.model(dummy_input).sum())
        clear_gradients(state)


def trial(state: TrainState, images_NCHW: Tensor) -> None:
    """A forward and a backward pass of images that stand for no samples; the ranks do not wait for each other.

    Nothing of it stays, also where it fails.
    """
    try:
        with preserve_buffers(state.model), state.accelerator.no_sync(state.model):
            state.model(images_NCHW).sum().backward()
    finally:
        clear_gradients(state)


@contextmanager
def frozen_batchnorm(module: nn.Module) -> Iterator[None]:
    """For a forward pass of stand-in images: BatchNorm neither learns from them nor refuses that there are so few."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def _update(state: TrainState, measured: Sequence[MicroBatchResult]) -> StepResult:
    """Clip, and let the optimizer step, unless the gradient is not finite. All ranks hold the same gradient."""
    scaler, optimizer = state.accelerator.scaler, state.stepping
    if scaler is not None:
        state.accelerator.unscale_gradients(state.optimizer)
    if state.clip_grad_norm is not None:
        grad_norm = torch.nn.utils.clip_grad_norm_(state.parameters, state.clip_grad_norm)
    else:
        grad_norm = _norm([p.grad for p in state.parameters if p.grad is not None])
    applied: bool | None = None
    values: Sequence[float] = ()
    if scaler is not None:
        optimizer.step()  # the loss scaler looks for itself, skips, and scales less the next time
        applied = not state.optimizer.step_was_skipped
    elif state.skips_unseen:
        _step_unless_not_finite(state.optimizer.optimizer, [grad_norm, *(m.loss for m in measured)])
    else:
        values = to_host([grad_norm, *(m.loss for m in measured)])
        applied = all(map(math.isfinite, values))
        if applied:
            optimizer.step()
    clear_gradients(state)
    return StepResult(measured, grad_norm, applied, values)


def _step_unless_not_finite(optimizer: Optimizer, values: Sequence[Tensor]) -> None:
    """Step where all values are finite, and were at all steps before: fused kernels ask a flag on their device.

    The flag is torch's own, made for loss scalers: 1.0 says that a gradient is not finite.
    """
    unusable = (~torch.stack([value.float() for value in values]).isfinite()).any().float()
    before: Tensor | None = getattr(optimizer, "found_inf", None)
    optimizer.found_inf = unusable if before is None else torch.maximum(before, unusable)  # type: ignore[attr-defined]
    optimizer.step()


def _norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all of them together; what `torch.nn.utils.get_total_norm` computes, with less around it."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


def clear_gradients(state: TrainState) -> None:
    """As after a step."""
    for parameter in state.parameters:
        parameter.grad = None


def measure(micro_batch: MicroBatch, logits_NC: Tensor, loss: Tensor, denominator: float) -> MicroBatchResult:
    """What a piece came to; nothing waits for it."""
    return MicroBatchResult(
        micro_batch.shard, denominator, loss.detach(), count_correct(logits_NC.detach(), micro_batch.labels_N)
    )
