"""One pass of evaluation: loss and accuracy over exactly the samples that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from trainlib.data.batches.loader import BatchLoader, MicroBatch
from trainlib.distributed.process_group import broadcast_buffers
from trainlib.models import set_train_mode
from trainlib.models.losses import Objective
from trainlib.models.tta import Network, with_tta
from trainlib.training.metrics.sums import Metrics, MicroBatchResult, Sums, gather_sums, metrics_of, sums_of
from trainlib.training.step.state import TrainState
from trainlib.training.step.train_step import measure

OnBatch = Callable[[MicroBatch, Tensor], None]  # a piece of an evaluation and its logits [N, C], both on the device


@torch.no_grad()
def evaluate(
    state: TrainState,
    batches: BatchLoader,
    ids_N: Tensor,
    batch_size: int,
    on_batch: OnBatch = lambda micro_batch, logits_NC: None,
) -> Metrics:
    """Loss and accuracy over exactly these samples, each counted once, the same on every rank."""
    broadcast_buffers(state.classifier.module)  # rank 0's BatchNorm statistics, which checkpoints hold, are the model's
    model = state.local_model  # no gradients to share: ranks may differ in batch count
    model.eval()
    micro_batches = batches.eval_batches(ids_N, batch_size)
    num_shards = batches.rank_slice.num_shards
    network = with_tta(model, state.test_time)
    sums = evaluation_sums(network, state.objective, micro_batches, on_batch, num_shards)
    set_train_mode(state.classifier)
    denominator = state.objective.denominator(batches.labels_N[ids_N])
    return metrics_of(gather_sums(sums, state.accelerator.device), denominator, len(ids_N))


def evaluation_sums(
    network: Network, objective: Objective, micro_batches: Iterable[MicroBatch], on_batch: OnBatch, num_shards: int = 1
) -> Sums:
    """Return the metric sums of this rank's micro-batches, by a network in eval mode; `on_batch` sees their logits."""
    measured: list[MicroBatchResult] = []
    for micro_batch in micro_batches:
        logits_NC = network(micro_batch.images_NCHW)
        part = objective.denominator(micro_batch.cpu_labels_N)
        loss = objective(logits_NC, micro_batch.labels_N) if part else logits_NC.sum()
        measured.append(measure(micro_batch, logits_NC, loss, part))
        on_batch(micro_batch, logits_NC)
    return sums_of(measured, num_shards)
