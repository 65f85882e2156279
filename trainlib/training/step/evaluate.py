"""One pass of evaluation: loss and accuracy over exactly the samples that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from trainlib.data.loader import Batches, Piece
from trainlib.distributed.process_group import share_buffers
from trainlib.models import set_train_mode
from trainlib.models.losses import Objective
from trainlib.models.tta import Network, with_views
from trainlib.training.metrics.sums import Measured, Metrics, Sums, gather_sums, metrics_of, sums_of
from trainlib.training.step.state import Engine
from trainlib.training.step.train_step import measure

OnBatch = Callable[[Piece, Tensor], None]  # a piece of an evaluation and its logits [N, C], both on the device


@torch.no_grad()
def evaluate(
    engine: Engine, batches: Batches, ids_N: Tensor, batch_size: int, on_batch: OnBatch = lambda piece, logits_NC: None
) -> Metrics:
    """Loss and accuracy over exactly these samples, each counted once, the same on every rank."""
    share_buffers(engine.classifier.module)  # rank 0's BatchNorm statistics, which checkpoints hold, are the model's
    model = engine.local_model  # no gradients to share: ranks may differ in batch count
    model.eval()
    pieces = batches.evaluation(ids_N, batch_size)
    num_parts = batches.shard.num_parts
    network = with_views(model, engine.test_time)
    sums = evaluation_sums(network, engine.objective, pieces, on_batch, num_parts)
    set_train_mode(engine.classifier)
    denominator = engine.objective.denominator(batches.labels_N[ids_N])
    return metrics_of(gather_sums(sums, engine.accelerator.device), denominator, len(ids_N))


def evaluation_sums(
    network: Network, objective: Objective, pieces: Iterable[Piece], on_batch: OnBatch, num_parts: int = 1
) -> Sums:
    """The sums (see `metrics`) of this rank's pieces, by a network in eval mode. `on_batch` sees their logits."""
    measured: list[Measured] = []
    for piece in pieces:
        logits_NC = network(piece.images_NCHW)
        part = objective.denominator(piece.cpu_labels_N)
        loss = objective(logits_NC, piece.labels_N) if part else logits_NC.sum()
        measured.append(measure(piece, logits_NC, loss, part))
        on_batch(piece, logits_NC)
    return sums_of(measured, num_parts)
