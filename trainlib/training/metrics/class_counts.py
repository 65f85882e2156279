"""Metrics beyond accuracy, from whole numbers: top-5 accuracy, macro F1 and balanced accuracy.

While an evaluation goes, each rank keeps three numbers for each of its samples on the device, which costs no waiting.
At the end it counts them by class, and the counts of all ranks are added up: int64, so the metrics are the same on any
number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from trainlib.data.batches.loader import MicroBatch

TOP = 5


def is_in_top(logits_NC: Tensor, labels_N: Tensor, top: int = TOP) -> Tensor:
    """Return whether the label's logit is among the `top` largest: bool [N]. Nothing waits for the device.

    Of equal logits the one of the lower class is the larger, as for `argmax`; NaN is larger than any number. With at
    most `top` classes it always is.
    """
    own_N1 = logits_NC.gather(1, labels_N[:, None])
    is_lower_NC = torch.arange(logits_NC.shape[1], device=logits_NC.device) < labels_N[:, None]
    # Negated, so that a comparison with NaN counts as larger.
    ahead_NC = torch.where(is_lower_NC, ~(logits_NC < own_N1), ~(logits_NC <= own_N1))
    return ahead_NC.scatter(1, labels_N[:, None], False).sum(dim=1) < top


class ClassMetrics(NamedTuple):
    """Metrics of an evaluation beyond loss and accuracy.

    top5                the fraction of samples whose label is among the five largest logits
    macro_f1            the mean of F1 = 2 hits / (true + predicted), over the classes that occur or were predicted
    balanced_accuracy   the mean of recall = hits / true, over the classes that occur
    """

    top5: float
    macro_f1: float
    balanced_accuracy: float


@dataclass(frozen=True)
class ClassCounts:
    """Numbers of samples: int64 [C] by class, on the CPU.

    hits_C        of this class and predicted as such
    true_C        of this class
    predicted_C   predicted to be of this class
    num_in_top    over all classes: those whose label is among the five largest logits
    """

    hits_C: Tensor
    true_C: Tensor
    predicted_C: Tensor
    num_in_top: int

    def metrics(self) -> ClassMetrics:
        """Return the metrics that these numbers make; NaN without samples."""
        rows = list(zip(self.hits_C.tolist(), self.true_C.tolist(), self.predicted_C.tolist(), strict=True))
        return ClassMetrics(
            top5=_mean([self.num_in_top], int(self.true_C.sum())),
            macro_f1=_mean([2 * hits / (true + predicted) for hits, true, predicted in rows if true + predicted]),
            balanced_accuracy=_mean([hits / true for hits, true, _ in rows if true]),
        )


def _mean(values: list[float] | list[int], count: int | None = None) -> float:
    count = len(values) if count is None else count
    return sum(values) / count if count else float("nan")


class ClassCounter:
    """Counts the samples of an evaluation by class: `add` takes each of this rank's micro-batches."""

    def __init__(self, num_classes: int, device: torch.device):
        """Begin to count. `device` is the one that the ranks talk through."""
        self._num_classes = num_classes
        self._device = device
        self._rows = [torch.empty(0, 3, dtype=torch.int64, device=device)]

    def add(self, micro_batch: MicroBatch, logits_NC: Tensor) -> None:
        """Take in the logits of a micro-batch, on the device; nothing waits for them."""
        labels_N = micro_batch.targets.labels_N
        self._rows.append(
            torch.stack([labels_N, logits_NC.argmax(dim=1), is_in_top(logits_NC, labels_N).long()], dim=1)
        )

    def counts(self) -> ClassCounts:
        """Return the counts over all ranks, the same on every rank. A synchronisation point, and a collective."""
        labels_N, predicted_N, in_top_N = torch.cat(self._rows).cpu().unbind(dim=1)
        counts_X = torch.cat(
            [
                *(self._by_class(of_N) for of_N in (labels_N[labels_N == predicted_N], labels_N, predicted_N)),
                in_top_N.sum()[None],
            ]
        )
        if dist.is_initialized() and dist.get_world_size() > 1:
            counts_X = counts_X.to(self._device)
            dist.all_reduce(counts_X)
            counts_X = counts_X.cpu()
        hits_C, true_C, predicted_C, in_top = counts_X.split([*[self._num_classes] * 3, 1])
        return ClassCounts(hits_C, true_C, predicted_C, int(in_top))

    def _by_class(self, classes_N: Tensor) -> Tensor:
        return torch.bincount(classes_N, minlength=self._num_classes)
