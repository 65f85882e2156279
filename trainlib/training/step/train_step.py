"""One optimizer step: its result depends only on weights, optimizer state, batch, seed and the step's number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter

import torch
from torch import Tensor, nn

from trainlib.data.batches.loader import MicroBatch
from trainlib.distributed.devices.out_of_memory import ADVICE, explained
from trainlib.errors import UserError
from trainlib.models import preserve_buffers
from trainlib.models.forward.synchronized_batchnorm import standing_in, synchronized_layers
from trainlib.models.losses import count_correct
from trainlib.models.weights.files import first_names
from trainlib.randomness import key, seed_generators
from trainlib.training.metrics.sums import MicroBatchResult
from trainlib.training.step.state import TrainState
from trainlib.training.step.update import UpdateStatus

_NOTHING = nullcontext()


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step produced.

    micro_batches     the loss and accuracy of each of this rank's micro-batches
    grad_norm         2-norm of the whole gradient before clipping: a scalar, the same on every rank
    status            APPLIED; SKIPPED where the gradient was not finite: weights, buffers and optimizer are as before;
                      PENDING where only the device knows yet which of the two it is
    norm_and_losses   the values of `grad_norm` and of the micro-batches' losses, where the host has read them
    """

    micro_batches: Sequence[MicroBatchResult]
    grad_norm: Tensor
    status: UpdateStatus
    norm_and_losses: Sequence[float] = ()


def train_step(state: TrainState, step: int, micro_batches: Sequence[MicroBatch], denominator: float) -> StepResult:
    """Apply the gradient of the loss over one global batch.

    step           the step's number, from 0; dropout draws from it
    micro_batches  this rank's, shard by shard, in order
    denominator    of the whole global batch (see `Objective`), which every rank computes from the batch's labels

    Raises torch.OutOfMemoryError before the optimizer steps, with everything as it was before; UserError if memory runs
    out within the optimizer's step, which cannot be taken back.
    """
    results: list[MicroBatchResult] = []
    if state.audit is not None:
        state.audit.choose(step, micro_batches)
    state.buffers.take()
    try:
        _backward(state, step, micro_batches, denominator, results)
        if state.audit is not None:  # before anything is applied
            with explained("the second computation of train.audit"):
                state.audit.compare(step, state.local_model, partial(weighted_loss, state, denominator=denominator))
        state.update.unscale_gradients()
        grad_norm = clip_gradients(state)
    except torch.OutOfMemoryError:
        clear_gradients(state)
        state.buffers.restore()
        raise
    size = max(len(micro_batch.ids_N) for micro_batch in micro_batches)
    with explained("the optimizer's step", f"set train.micro_batch_size to {max(1, size // 2)}, or {ADVICE}"):
        status, values = state.update.apply(grad_norm, [result.loss for result in results])
    clear_gradients(state)
    if status is UpdateStatus.SKIPPED:
        state.buffers.restore()  # BatchNorm took the batch into its statistics
    state.pace.resume()
    return StepResult(results, grad_norm, status, values)


def _backward(
    state: TrainState,
    step: int,
    micro_batches: Sequence[MicroBatch],
    denominator: float,
    results: list[MicroBatchResult],
) -> None:
    """Leave the gradient of the global batch on every rank, and append each micro-batch's loss and correct count."""
    reducer, pace, last = state.reducer, state.pace, micro_batches[-1]
    first_shard = micro_batches[0].shard
    reducer.start_step()
    if state.together is not None:

        def loss_of(model: nn.Module, micro_batch: MicroBatch) -> Tensor:
            seed_generators(key(step, micro_batch.shard, folded=state.step_key), state.accelerator.device)
            return _loss_of(state, model, micro_batch, denominator, results)

        state.together.backward(micro_batches, loss_of, state.update.backward, reducer)
        reducer.finish_step()
        return
    for shard, in_shard in groupby(micro_batches, key=attrgetter("shard")):
        seed_generators(key(step, shard, folded=state.step_key), state.accelerator.device)
        with reducer.shard(shard):
            for micro_batch in in_shard:
                if shard == first_shard:
                    pace.resume()  # a wrapper for other ranks has let it stand
                if reducer.runs_empty_shards or not micro_batch.is_empty:
                    with reducer.micro_batch(is_last=micro_batch is last):
                        backward_one(state, micro_batch, denominator, results)
                    reducer.after_backward(len(micro_batch.targets))
        if shard == first_shard:
            pace.end_shard(sum(len(other.ids_N) for other in micro_batches if other.shard == shard))
    reducer.finish_step()


def backward_one(
    state: TrainState, micro_batch: MicroBatch, denominator: float, results: list[MicroBatchResult]
) -> None:
    """Run a micro-batch forward and backward, its loss weighted by its share of the global denominator."""
    audit = state.audit
    if audit is not None:
        audit.before_forward(micro_batch, list(state.model.buffers()))
    loss = _loss_of(state, state.model, micro_batch, denominator, results)
    if audit is None:
        state.update.backward(loss)
    else:
        with audit.during_backward(micro_batch, state.update.scaled(loss)):
            state.update.backward(loss)


def _loss_of(
    state: TrainState,
    model: nn.Module,
    micro_batch: MicroBatch,
    denominator: float,
    results: list[MicroBatchResult],
) -> Tensor:
    """Run a micro-batch forward; return its loss, weighted by its share of the global denominator."""
    with _without_samples(model) if micro_batch.is_empty else _NOTHING:
        logits_NC = model(micro_batch.images_NCHW)
    loss, own = (None, 0.0) if micro_batch.is_empty else state.objective.of(logits_NC, micro_batch.targets)
    if loss is None:  # with weight 0 any loss will do: it takes part in the backward pass and adds nothing
        loss = logits_NC.sum()
    if not micro_batch.is_empty:
        results.append(measure(micro_batch, logits_NC, loss, own))
    return _weighted(state, loss, own, denominator)


def _weighted(state: TrainState, loss: Tensor, own: float, denominator: float) -> Tensor:
    """Return the loss times its share of the global denominator; `own` is the micro-batch's part of that."""
    weight = own / denominator * state.reducer.gradient_scale if own else 0.0
    if weight != 1.0 or state.accelerator.num_processes > 1:
        # 0 * loss is 0, and NaN where the loss is not finite: the reduced gradient then tells every rank.
        loss = loss * (weight + 0.0 * loss.detach())
    return loss


def weighted_loss(state: TrainState, model: nn.Module, micro_batch: MicroBatch, *, denominator: float) -> Tensor:
    """Return the loss from which a micro-batch's gradients are computed, by a model that waits for no other rank."""
    logits_NC = model(micro_batch.images_NCHW)
    loss, own = state.objective.of(logits_NC, micro_batch.targets)
    return state.update.scaled(_weighted(state, logits_NC.sum() if loss is None else loss, own, denominator))


def warm_up(state: TrainState, dummy_input: Tensor) -> None:
    """Make one backward pass that changes nothing, where the reducer needs one before the first step. A collective.

    dummy_input   one input of `state.model`, which stands for no sample

    Raises UserError for a parameter that gets no gradient by it, for which ranks would wait forever.
    """
    if state.reducer.needs_warm_up():
        with frozen_batchnorm(state.classifier.module):
            state.accelerator.backward(state.model(dummy_input).sum())
        parameters = state.classifier.module.named_parameters()
        unused = [name for name, parameter in parameters if parameter.requires_grad and parameter.grad is None]
        if unused:
            raise UserError(
                f"model: {first_names(unused)} take no part in the forward pass, and several processes wait for their "
                "gradients: let them require none (requires_grad_(False)), remove them, or use --processes 1 or "
                "train.reproducibility=elastic"
            )
        clear_gradients(state)


def trial(state: TrainState, images_NCHW: Tensor) -> None:
    """Run images that stand for no samples forward and backward, without waiting for other ranks.

    Nothing of it stays, also where it fails.
    """
    try:
        with preserve_buffers(state.model), state.accelerator.no_sync(state.model):
            state.model(images_NCHW).sum().backward()
    finally:
        clear_gradients(state)


@contextmanager
def frozen_batchnorm(module: nn.Module) -> Iterator[None]:
    """Keep BatchNorm in eval mode inside: it then neither learns from dummy images nor refuses a single one."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


@contextmanager
def _without_samples(module: nn.Module) -> Iterator[None]:
    """Keep BatchNorm from learning of a dummy image; synchronised layers exchange what they must all the same."""
    is_synchronized = bool(synchronized_layers(module))
    with standing_in(module) if is_synchronized else frozen_batchnorm(module):
        yield


def clip_gradients(state: TrainState) -> Tensor:
    """Clip the gradient where that is configured, and return the 2-norm that it had before."""
    if state.clip_grad_norm is not None:
        return torch.nn.utils.clip_grad_norm_(state.parameters, state.clip_grad_norm)
    # What `torch.nn.utils.get_total_norm` computes, with less around it.
    gradients = [parameter.grad for parameter in state.parameters if parameter.grad is not None]
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


def clear_gradients(state: TrainState) -> None:
    """Set the gradient of every parameter to None, as `optimizer.zero_grad()` does."""
    for parameter in state.parameters:
        parameter.grad = None


def measure(micro_batch: MicroBatch, logits_NC: Tensor, loss: Tensor, denominator: float) -> MicroBatchResult:
    """Return the loss and the number of correct samples of a micro-batch, on the device: nothing waits for them.

    logits_NC     float [N, C]
    loss          a scalar, of these samples
    denominator   of these samples
    """
    num_correct = count_correct(logits_NC.detach(), micro_batch.targets.likely_labels)
    return MicroBatchResult(micro_batch.shard, denominator, loss.detach(), num_correct)
