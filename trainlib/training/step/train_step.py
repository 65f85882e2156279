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

from trainlib.data.loader import Piece
from trainlib.distributed.allreduce.elastic import Elastic
from trainlib.models import buffers_kept
from trainlib.models.losses import correct
from trainlib.randomness import key, seed_generators
from trainlib.training.metrics.sums import Measured, on_host
from trainlib.training.step.state import Engine

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

    measured: Sequence[Measured]
    grad_norm: Tensor
    applied: bool | None
    norm_and_losses: Sequence[float] = ()


def train_step(engine: Engine, step: int, pieces: Sequence[Piece], denominator: float) -> StepResult:
    """Apply the gradient of the loss over one global batch.

    pieces       this rank's micro-batches
    denominator  of the whole global batch, which every rank knows from its labels

    Raises torch.OutOfMemoryError with everything as it was before.
    """
    measured: list[Measured] = []
    if engine.buffers:
        torch._foreach_copy_(engine.buffers_before, engine.buffers)
    try:
        if engine.elastic is None:
            _backward_of_rank(engine, step, pieces, denominator, measured)
        else:
            _backward_of_shards(engine, engine.elastic, step, pieces, denominator, measured)
    except torch.OutOfMemoryError:
        forget_gradients(engine)
        _restore_buffers(engine)
        raise
    result = _update(engine, measured)
    if result.applied is False:
        _restore_buffers(engine)
    return result


def _restore_buffers(engine: Engine) -> None:
    """BatchNorm took the batch into its statistics on the way forward."""
    if engine.buffers:
        torch._foreach_copy_(engine.buffers, engine.buffers_before)


def _backward_of_rank(
    engine: Engine, step: int, pieces: Sequence[Piece], denominator: float, measured: list[Measured]
) -> None:
    """Leave the gradient of the global batch on every rank; only the last backward pass talks to the other ranks.

    DistributedDataParallel averages over ranks, so each rank's part is multiplied by the world size.
    """
    accelerator = engine.accelerator
    seed_generators(key(step, accelerator.process_index, folded=engine.step_key), accelerator.device)
    *earlier, last = pieces
    for piece in earlier:
        with accelerator.no_sync(engine.model):
            _backward(engine, piece, denominator, measured, factor=accelerator.num_processes)
    _backward(engine, last, denominator, measured, factor=accelerator.num_processes)


def _backward_of_shards(
    engine: Engine,
    elastic: Elastic,
    step: int,
    pieces: Sequence[Piece],
    denominator: float,
    measured: list[Measured],
) -> None:
    """The same in elastic mode, with the same bits at every world size."""
    elastic.start()
    for shard, cut in groupby(pieces, key=attrgetter("part")):
        seed_generators(key(step, shard, folded=engine.step_key), engine.accelerator.device)
        with elastic.shard(shard):
            for piece in cut:
                if not piece.is_empty:
                    _backward(engine, piece, denominator, measured)
                    elastic.learned(len(piece.cpu_labels_N))
    elastic.finish()


def _backward(engine: Engine, piece: Piece, denominator: float, measured: list[Measured], factor: int = 1) -> None:
    """Measure a piece, and add its gradient, by its share of the global denominator, to the gradients."""
    with standing_in(engine.classifier.module) if piece.is_empty else NOTHING_SPECIAL:
        logits_NC = engine.model(piece.images_NCHW)
    part = 0.0 if piece.is_empty else engine.objective.denominator(piece.cpu_labels_N)
    # With weight 0 any loss will do: it takes part in the backward pass and adds nothing.
    loss = engine.objective(logits_NC, piece.labels_N) if part else logits_NC.sum()
    if not piece.is_empty:
        measured.append(measure(piece, logits_NC, loss, part))
    weight = part / denominator * factor if part else 0.0
    if weight != 1.0 or engine.accelerator.num_processes > 1:
        # 0 * loss is 0, and NaN where the loss is not finite: the reduced gradient then tells every rank.
        loss = loss * (weight + 0.0 * loss.detach())
    if engine.accelerator.scaler is None:
        loss.backward()  # Accelerate's `backward` would add a division by 1 to the graph
    else:
        engine.accelerator.backward(loss)


def warm_up(engine: Engine, stand_in: Tensor) -> None:
    """One backward pass that changes nothing, before the first step. `stand_in` is an input of `engine.model`.

    DistributedDataParallel lays out its buckets anew after the first one, in the order in which gradients came, and the
    layout decides in which order the ranks' gradients are added: without this the first step after a resume would add
    three or more ranks in another order than the uninterrupted run did.
    """
    if engine.accelerator.num_processes > 1 and engine.elastic is None:
        with standing_in(engine.classifier.module):
            engine.accelerator.backward(engine.model(stand_in).sum())
        forget_gradients(engine)


def trial(engine: Engine, images_NCHW: Tensor) -> None:
    """A forward and a backward pass of images that stand for no samples; the ranks do not wait for each other.

    Nothing of it stays, also where it fails.
    """
    try:
        with buffers_kept(engine.model), engine.accelerator.no_sync(engine.model):
            engine.model(images_NCHW).sum().backward()
    finally:
        forget_gradients(engine)


@contextmanager
def standing_in(module: nn.Module) -> Iterator[None]:
    """For a forward pass of stand-in images: BatchNorm neither learns from them nor refuses that there are so few."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


def _update(engine: Engine, measured: Sequence[Measured]) -> StepResult:
    """Clip, and let the optimizer step, unless the gradient is not finite. All ranks hold the same gradient."""
    scaler, optimizer = engine.accelerator.scaler, engine.stepping
    if scaler is not None:
        engine.accelerator.unscale_gradients(engine.optimizer)
    if engine.clip_grad_norm is not None:
        grad_norm = torch.nn.utils.clip_grad_norm_(engine.parameters, engine.clip_grad_norm)
    else:
        grad_norm = _norm([p.grad for p in engine.parameters if p.grad is not None])
    applied: bool | None = None
    values: Sequence[float] = ()
    if scaler is not None:
        optimizer.step()  # the loss scaler looks for itself, skips, and scales less the next time
        applied = not engine.optimizer.step_was_skipped
    elif engine.skips_unseen:
        _step_unless_not_finite(engine.optimizer.optimizer, [grad_norm, *(m.loss for m in measured)])
    else:
        values = on_host([grad_norm, *(m.loss for m in measured)])
        applied = all(map(math.isfinite, values))
        if applied:
            optimizer.step()
    forget_gradients(engine)
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


def forget_gradients(engine: Engine) -> None:
    """As after a step."""
    for parameter in engine.parameters:
        parameter.grad = None


def measure(piece: Piece, logits_NC: Tensor, loss: Tensor, denominator: float) -> Measured:
    """What a piece came to; nothing waits for it."""
    return Measured(piece.part, denominator, loss.detach(), correct(logits_NC.detach(), piece.labels_N))
