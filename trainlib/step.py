"""One optimizer step, and one pass of evaluation: pure functions of the weights, the batch, the seed and the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from trainlib.batches import Batches, Piece
from trainlib.distributed import share_buffers
from trainlib.elastic import Elastic
from trainlib.losses import Objective, correct
from trainlib.metrics import Metrics, gather_sums, metrics_of, zero_sums
from trainlib.models import Classifier, set_train_mode
from trainlib.randomness import key, seed_generators

OnBatch = Callable[[Piece, Tensor], None]  # a piece of an evaluation and its logits [N, C], both on the device

MIN_LOSS_SCALE = 1.0  # below it, a gradient that still overflows fp16 is no matter of scale


@dataclass(frozen=True)
class Engine:
    """What turns a batch into an update."""

    accelerator: Accelerator
    classifier: Classifier  # the bare module: canonical names
    model: nn.Module  # it, or with a cache of features the part that is trained; wrapped for precision and the ranks
    objective: Objective
    optimizer: AcceleratedOptimizer
    clip_grad_norm: float | None
    seed: int
    elastic: Elastic | None = None  # None = DistributedDataParallel adds up the gradients

    @property
    def num_parts(self) -> int:
        """How many parts a batch has (see `batches.Shard`)."""
        return self.accelerator.num_processes if self.elastic is None else self.elastic.num_shards

    @property
    def stepping(self) -> Optimizer:
        """What is stepped: torch's optimizer, or Accelerate's around it where there is a loss scaler.

        Accelerate's looks through the whole search path for an optional package at each step: 0.3 ms.
        """
        stepping: Optimizer = self.optimizer.optimizer if self.accelerator.scaler is None else self.optimizer
        return stepping

    def with_whole_model(self) -> Engine:
        """The same engine for images, where this one is for their features."""
        if self.accelerator.unwrap_model(self.model) is self.classifier.module:
            return self
        return replace(self, model=self.accelerator.prepare_model(self.classifier.module, evaluation_mode=True))

    def scaler_state(self) -> dict[str, Any] | None:
        """The fp16 loss scaler's state; None at other precisions."""
        scaler = self.accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def overflow_is_expected(self) -> bool:
        """Whether a gradient that is not finite is the fp16 loss scaler feeling its way, and not a fault."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= MIN_LOSS_SCALE

    def load_state(self, optimizer: dict[str, Any], scaler: dict[str, Any] | None) -> None:
        self.optimizer.optimizer.load_state_dict(optimizer)
        if scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)


@dataclass(frozen=True)
class StepResult:
    """What a step came to.

    sums_P2     this rank's parts of the batch's metrics (see `metrics`)
    grad_norm   of the whole gradient, before clipping; the same on every rank
    applied     False where the gradient was not finite: weights, buffers and optimizer are as they were before
    """

    sums_P2: Tensor
    grad_norm: Tensor
    applied: bool


def train_step(engine: Engine, step: int, pieces: Sequence[Piece], denominator: float) -> StepResult:
    """Apply the gradient of the loss over one global batch.

    pieces       this rank's micro-batches
    denominator  of the whole global batch, which every rank knows from its labels
    """
    sums_P2 = zero_sums(engine.num_parts, engine.accelerator.device)
    buffers = [(buffer, buffer.clone()) for buffer in engine.model.buffers()]
    if engine.elastic is None:
        _backward_of_rank(engine, step, pieces, denominator, sums_P2)
    else:
        _backward_of_shards(engine, engine.elastic, step, pieces, denominator, sums_P2)
    result = _update(engine, sums_P2)
    if not result.applied:
        for buffer, before in buffers:  # BatchNorm took the bad batch into its statistics on the way forward
            buffer.copy_(before)
    return result


def _backward_of_rank(engine: Engine, step: int, pieces: Sequence[Piece], denominator: float, sums_P2: Tensor) -> None:
    """Leave the gradient of the global batch on every rank; only the last backward pass talks to the other ranks.

    DistributedDataParallel averages over ranks, so each rank's part is multiplied by the world size.
    """
    accelerator = engine.accelerator
    seed_generators(key("step", engine.seed, step, accelerator.process_index), accelerator.device)
    for index, piece in enumerate(pieces):
        last = index == len(pieces) - 1
        with nullcontext() if last else accelerator.no_sync(engine.model):
            _backward(engine, piece, denominator, sums_P2, factor=accelerator.num_processes)


def _backward_of_shards(
    engine: Engine, elastic: Elastic, step: int, pieces: Sequence[Piece], denominator: float, sums_P2: Tensor
) -> None:
    """The same in elastic mode, with the same bits at every world size."""
    elastic.start()
    for shard, cut in groupby(pieces, key=attrgetter("part")):
        seed_generators(key("step", engine.seed, step, shard), engine.accelerator.device)
        with elastic.shard(shard):
            for piece in cut:
                if not piece.is_empty:
                    _backward(engine, piece, denominator, sums_P2)
                    elastic.learned(len(piece.cpu_labels_N))
    elastic.finish()


def _backward(engine: Engine, piece: Piece, denominator: float, sums_P2: Tensor, factor: int = 1) -> None:
    """Add a piece's metrics to the sums, and its gradient, by its share of the global denominator, to the gradients."""
    with standing_in(engine.classifier.module) if piece.is_empty else nullcontext():
        logits_NC = engine.model(piece.images_NCHW)
    part = 0.0 if piece.is_empty else engine.objective.denominator(piece.cpu_labels_N)
    # With weight 0 any loss will do: it takes part in the backward pass and adds nothing.
    loss = engine.objective(logits_NC, piece.labels_N) if part else logits_NC.sum()
    sums_P2[piece.part].add_(_sums(piece, logits_NC, loss, part))
    weight = part / denominator * factor if part else 0.0
    # 0 * loss is 0, and NaN where the loss is not finite: the reduced gradient then tells every rank.
    engine.accelerator.backward(loss, gradient=weight + 0.0 * loss.detach())


def warm_up(engine: Engine, stand_in: Tensor) -> None:
    """One backward pass that changes nothing, before the first step. `stand_in` is an input of `engine.model`.

    DistributedDataParallel lays out its buckets anew after the first one, in the order in which gradients came, and the
    layout decides in which order the ranks' gradients are added: without this the first step after a resume would add
    three or more ranks in another order than the uninterrupted run did.
    """
    if engine.accelerator.num_processes > 1 and engine.elastic is None:
        with standing_in(engine.classifier.module):
            engine.accelerator.backward(engine.model(stand_in).sum())
        engine.stepping.zero_grad()


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


def _update(engine: Engine, sums_P2: Tensor) -> StepResult:
    """Clip, and let the optimizer step, unless the gradient is not finite. All ranks hold the same gradient."""
    accelerator, optimizer = engine.accelerator, engine.stepping
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if engine.clip_grad_norm is not None:
        grad_norm = accelerator.clip_grad_norm_(parameters, engine.clip_grad_norm)
    else:
        accelerator.unscale_gradients(engine.optimizer)
        grad_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if accelerator.scaler is not None:
        optimizer.step()  # the loss scaler looks for itself, skips, and scales less the next time
        applied = not engine.optimizer.step_was_skipped
    else:
        applied = math.isfinite(grad_norm.item())
        if applied:
            optimizer.step()
    optimizer.zero_grad()
    return StepResult(sums_P2, grad_norm, applied)


@torch.no_grad()
def evaluate(
    engine: Engine, batches: Batches, ids_N: Tensor, batch_size: int, on_batch: OnBatch = lambda piece, logits_NC: None
) -> Metrics:
    """Loss and accuracy over exactly these samples, each counted once, the same on every rank."""
    share_buffers(engine.classifier.module)  # rank 0's BatchNorm statistics, which checkpoints hold, are the model's
    model = engine.accelerator.unwrap_model(engine.model)  # no gradients to share: ranks may differ in batch count
    model.eval()
    pieces = batches.evaluation(ids_N, batch_size)
    num_parts = batches.shard.num_parts
    sums_P2 = evaluation_sums(model, engine.objective, pieces, engine.accelerator.device, on_batch, num_parts)
    set_train_mode(engine.classifier)
    denominator = engine.objective.denominator(batches.labels_N[ids_N])
    return metrics_of(gather_sums(sums_P2), denominator, len(ids_N))


def evaluation_sums(
    model: nn.Module,
    objective: Objective,
    pieces: Iterable[Piece],
    device: torch.device,
    on_batch: OnBatch,
    num_parts: int = 1,
) -> Tensor:
    """The sums (see `metrics`) of this rank's pieces, by a model in eval mode. `on_batch` sees their logits."""
    sums_P2 = zero_sums(num_parts, device)
    for piece in pieces:
        logits_NC = model(piece.images_NCHW)
        part = objective.denominator(piece.cpu_labels_N)
        loss = objective(logits_NC, piece.labels_N) if part else logits_NC.sum()
        sums_P2[piece.part] += _sums(piece, logits_NC, loss, part)
        on_batch(piece, logits_NC)
    return sums_P2


def _sums(piece: Piece, logits_NC: Tensor, loss: Tensor, part: float) -> Tensor:
    """What a piece adds to the sums; a denominator of zero adds no loss, whatever the loss is."""
    loss_sum = loss.detach().double() * part if part else torch.zeros((), dtype=torch.float64, device=loss.device)
    hits = correct(logits_NC.detach(), piece.labels_N) if len(piece.labels_N) else torch.zeros_like(loss_sum)
    return torch.stack([loss_sum, hits.to(loss_sum.dtype)])
