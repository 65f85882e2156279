"""Metrics of any partition of a set into shards and micro-batches, against the whole set at once: by hypothesis."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor, nn

from trainlib.config import LossConfig
from trainlib.models.losses import Objective, count_correct
from trainlib.training.metrics.sums import MicroBatchResult, metrics_of, sums_of

CLASSES = 4
SECTIONS = (
    {"name": "CrossEntropyLoss", "activation": "none"},
    {"name": "CrossEntropyLoss", "activation": "none", "weight": [0.5, 1.0, 2.0, 0.25], "ignore_index": 2},
    {"name": "CrossEntropyLoss", "activation": "none", "label_smoothing": 0.1, "reduction": "sum"},
    {"name": "BCEWithLogitsLoss", "activation": "none"},
    {"name": "MSELoss", "activation": "softmax", "reduction": "none"},
)
lengths = some.lists(some.lists(some.integers(0, 6), min_size=1, max_size=4), min_size=1, max_size=6)


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_NC = torch.randn(count, CLASSES, generator=generator, dtype=torch.float64)
    return logits_NC, torch.randint(CLASSES, (count,), generator=generator)


@given(some.sampled_from(SECTIONS), lengths, some.integers(0, 1000))
def test_any_partition_gives_the_metrics_of_the_whole(
    section: dict[str, object], shards: list[list[int]], seed: int
) -> None:
    """Losses of shards, each cut into micro-batches of these lengths, some of them empty."""
    objective = Objective(LossConfig.model_validate(section), CLASSES, torch.device("cpu"))
    assert isinstance(objective.module, nn.Module)
    objective.module.double()
    count = sum(map(sum, shards))
    logits_NC, labels_N = samples(count, seed)
    results, at = [], 0
    for shard, micro_batches in enumerate(shards):
        for length in micro_batches:
            part_NC, part_N = logits_NC[at : at + length], labels_N[at : at + length]
            at += length
            correct = count_correct(part_NC, part_N)
            results.append(MicroBatchResult(shard, objective.denominator(part_N), objective(part_NC, part_N), correct))
    metrics = metrics_of(sums_of(results, len(shards)), objective.denominator(labels_N), count)
    assert metrics.count == count
    if not count:
        assert math.isnan(metrics.accuracy)
        return
    assert metrics.accuracy == (logits_NC.argmax(1) == labels_N).double().mean().item()
    if objective.denominator(labels_N):
        whole = objective(logits_NC, labels_N).item()
        assert math.isclose(metrics.loss, whole, rel_tol=1e-12, abs_tol=1e-12)
    else:
        assert math.isnan(metrics.loss)
