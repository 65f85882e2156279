"""Metrics of the user's own: functions of the logits and labels of a whole split, the same on any number of ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainlib.data.batches.loader import MicroBatch
from trainlib.data.targets import is_of_class
from trainlib.distributed.process_group import broadcast_object
from trainlib.errors import UserError
from trainlib.models.own_parts.custom_parts import OwnMetric
from trainlib.training.metrics.sums import gather_rows

logger = logging.getLogger("trainlib")


class OwnMetricCollector:
    """Keeps the logits of this rank's samples while an evaluation goes, if there are any metrics to compute of them."""

    def __init__(self, metrics: Mapping[str, OwnMetric], num_classes: int, device: torch.device):
        """Begin an evaluation. `device` is the one that the ranks talk through."""
        self._metrics = metrics
        self._logits = [torch.empty(0, num_classes, device=device)]
        self._ids = [torch.empty(0, 1, dtype=torch.int64, device=device)]

    def add(self, micro_batch: MicroBatch, logits_NC: Tensor) -> None:
        """Take in the logits of a micro-batch, on the device; nothing waits for them."""
        if self._metrics:
            self._logits.append(logits_NC.detach().float())
            ids_N = micro_batch.ids_N.to(logits_NC.device, non_blocking=True)
            self._ids.append(ids_N[:, None])

    def values(self, labels_N: Tensor) -> dict[str, float]:
        """Return the value of each metric, the same on every rank. A collective.

        Rank 0 computes them, of all samples in the samples' own order.

        labels_N   those of all samples of the image set, on the CPU: int64 [N], or bool [N, C] for sets of classes
        """
        if not self._metrics:
            return {}
        logits_NC = gather_rows(torch.cat(self._logits)).cpu()
        ids_N, order = gather_rows(torch.cat(self._ids)).cpu()[:, 0].sort()
        found: dict[str, float] | str
        try:
            given = logits_NC[order], labels_N[ids_N]
            found = {name: metric_value(name, metric(*given)) for name, metric in self._metrics.items()}
        except UserError as error:
            found = str(error)
        found = broadcast_object(found)
        if isinstance(found, str):
            raise UserError(found)
        for name, value in found.items():
            if not math.isfinite(value):
                logger.warning("evaluation.metrics: %s is %s of these %d samples", name, value, len(order))
        return found


def metric_value(name: str, value: Any) -> float:
    """Return a metric as a number. Raises UserError for anything that is not one number."""
    if isinstance(value, Tensor) or type(value).__module__ == "numpy":
        shape = list(value.shape)
        if math.prod(shape) != 1:
            raise UserError(f"evaluation.metrics: {name} returned values {shape}, must return one number of a split")
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"evaluation.metrics: {name} returned {type(value).__name__}, must return one number")
    return float(value)


def check_own_metrics(metrics: Mapping[str, OwnMetric], num_classes: int, *, of_sets: bool = False) -> None:
    """Raise UserError for a metric that gives no number of logits and labels, before anything is trained.

    of_sets   labels are sets of classes, bool [N, C]
    """
    labels_N = torch.arange(2 * num_classes) % num_classes
    labels_N = is_of_class(labels_N, num_classes) if of_sets else labels_N
    logits_NC = torch.linspace(-2, 3, 2 * num_classes**2).view(-1, num_classes).sin()
    for name, metric in metrics.items():
        try:
            found = metric(logits_NC.clone(), labels_N.clone())
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            shapes = f"logits {list(logits_NC.shape)}, labels {list(labels_N.shape)}"
            raise UserError(f"evaluation.metrics: {name}: {error} ({shapes})") from error
        metric_value(name, found)
