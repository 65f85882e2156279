"""One pass of evaluation: loss and accuracy over exactly the samples that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor

from trainlib.data.batches.loader import BatchLoader, MicroBatch
from trainlib.data.targets import are_sets
from trainlib.distributed.devices.out_of_memory import ADVICE, InPieces, explained
from trainlib.distributed.process_group import broadcast_buffers
from trainlib.models import set_train_mode
from trainlib.models.forward.tta import Network, with_tta
from trainlib.models.losses import Objective
from trainlib.models.own_parts.custom_parts import OwnMetric
from trainlib.training.metrics.class_counts import ClassCounter
from trainlib.training.metrics.label_sets import SetPredictionCollector
from trainlib.training.metrics.own import OwnMetricCollector
from trainlib.training.metrics.sums import Metrics, MicroBatchResult, gather_sums, metrics_of, sums_of
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
    thresholds: Sequence[float] | None = None,
) -> Metrics:
    """Return the metrics over exactly these samples, each counted once, the same on every rank. A collective.

    thresholds   of the classes, where samples have sets of them; None: those that are best for these samples
    """
    broadcast_buffers(state.classifier.module)  # rank 0's BatchNorm statistics, which checkpoints hold, are the model's
    model = state.local_model  # no gradients to share: ranks may differ in batch count
    model.eval()
    network = with_tta(model, state.test_time)
    advice = f"set train.micro_batch_size to {max(1, batch_size // 4)}, or {ADVICE}"
    with explained(f"an evaluation of {batch_size} images at a time", advice):
        metrics = metrics_over(
            network, state.objective, batches, ids_N, batch_size, on_batch, thresholds, state.own_metrics
        )
    set_train_mode(state.classifier)
    return metrics


def metrics_over(
    network: Network,
    objective: Objective,
    batches: BatchLoader,
    ids_N: Tensor,
    batch_size: int,
    on_batch: OnBatch,
    thresholds: Sequence[float] | None,
    own_metrics: Mapping[str, OwnMetric] = MappingProxyType({}),
) -> Metrics:
    """Return the metrics over these samples, by a network in eval mode; `on_batch` sees the logits. A collective."""
    network = InPieces(network)
    own = OwnMetricCollector(own_metrics, objective.num_classes, batches.device)
    measured: list[MicroBatchResult] = []
    counter: ClassCounter | SetPredictionCollector = ClassCounter(objective.num_classes, batches.device)
    if are_sets(batches.labels_N):
        counter = SetPredictionCollector(objective.num_classes, batches.device)
    for micro_batch in batches.eval_batches(ids_N, batch_size):
        logits_NC = network(micro_batch.images_NCHW)
        loss, part = objective.of(logits_NC, micro_batch.targets)
        measured.append(measure(micro_batch, logits_NC, logits_NC.sum() if loss is None else loss, part))
        counter.add(micro_batch, logits_NC)
        own.add(micro_batch, logits_NC)
        on_batch(micro_batch, logits_NC)
    sums = gather_sums(sums_of(measured, batches.rank_slice.num_shards), batches.device)
    metrics = metrics_of(sums, objective.denominator(batches.labels_N[ids_N]), len(ids_N))
    metrics = replace(metrics, own=own.values(batches.labels_N))
    if isinstance(counter, ClassCounter):
        return replace(metrics, **counter.counts().metrics()._asdict())
    predictions = counter.gathered()
    return replace(metrics, **predictions.metrics(batches.labels_N[predictions.ids_N], thresholds)._asdict())
