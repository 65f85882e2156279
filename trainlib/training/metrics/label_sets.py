"""Metrics of samples that have sets of classes: mean average precision, F1, subset accuracy, and the thresholds.

A class is in the answer where its probability is at least the class's threshold. Thresholds are chosen on the
validation split, each to give its class the best F1 there, and go with the weights in their checkpoint.

All figures need every sample's probabilities, in one order: each rank keeps those of its own on the device, and at the
end they are brought together. Every rank then computes the same numbers, and the number of ranks does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainlib.data.batches.loader import MicroBatch
from trainlib.training.metrics.sums import gather_rows

DEFAULT_THRESHOLD = 0.5


class SetMetrics(NamedTuple):
    """Metrics of an evaluation beyond the loss, as scikit-learn has them, with 0 where there is nothing to divide by.

    accuracy, subset_accuracy   the fraction of samples whose set is exactly right (`accuracy_score`)
    map                         the mean over the classes of the average precision (`average_precision_score`)
    macro_f1                    the mean over the classes of F1 = 2 hits / (true + predicted)
    micro_f1                    the same of the hits, true and predicted of all classes together
    thresholds                  of each class: those that the answers were made with
    """

    accuracy: float
    subset_accuracy: float
    map: float
    macro_f1: float
    micro_f1: float
    thresholds: tuple[float, ...]


class SetPredictions(NamedTuple):
    """The model's answers to a set of samples, ordered by their indices; all on the CPU.

    ids_N              int64: the samples' indices in their image set
    probabilities_NC   float32: of each class
    """

    ids_N: Tensor
    probabilities_NC: Tensor

    def metrics(self, labels_NC: Tensor, thresholds: Sequence[float] | None) -> SetMetrics:
        """Return the metrics of these samples, whose labels are bool [N, C]; None: choose the thresholds by them."""
        if thresholds is None:
            thresholds = choose_thresholds(self.probabilities_NC, labels_NC)
        return set_metrics(self.probabilities_NC, labels_NC, thresholds)

    def facts(self, labels_NC: Tensor, class_names: Sequence[str], thresholds: Sequence[float]) -> dict[str, Any]:
        """Return what an evaluation file says of the classes."""
        return {
            "thresholds": list(thresholds),
            "classes": list(class_names),
            "per_class": per_class(self.probabilities_NC, labels_NC, class_names, thresholds),
        }

    def mistakes(self, labels_NC: Tensor, thresholds: Sequence[float], count: int) -> list[dict[str, Any]]:
        """Return `count` samples whose sets are wrong, the surest first.

        Each has `index`, its row here; `missed` and `added`, the classes that lack and that are too many; `surest`, the
        one of these that the model was surest of, and its `probability`.
        """
        wrong_NC = predicted_sets(self.probabilities_NC, thresholds) != labels_NC
        # How far the probability of a class is from the right answer.
        error_NC = torch.where(labels_NC, 1 - self.probabilities_NC, self.probabilities_NC).masked_fill(~wrong_NC, -1)
        error_N, surest_N = error_NC.max(dim=1)
        surest_first = error_N.sort(descending=True, stable=True).indices
        return [
            {
                "index": index,
                "missed": (wrong_NC[index] & labels_NC[index]).nonzero()[:, 0].tolist(),
                "added": (wrong_NC[index] & ~labels_NC[index]).nonzero()[:, 0].tolist(),
                "surest": int(surest_N[index]),
                "probability": float(self.probabilities_NC[index, surest_N[index]]),
            }
            for index in surest_first[:count].tolist()
            if error_N[index] >= 0
        ]


class SetPredictionCollector:
    """Keeps the probabilities of this rank's samples while an evaluation goes: `add` is its `on_batch`."""

    def __init__(self, num_classes: int, device: torch.device):
        self._ids = [torch.empty(0, 1, dtype=torch.int64, device=device)]
        self._probabilities = [torch.empty(0, num_classes, device=device)]

    def add(self, micro_batch: MicroBatch, logits_NC: Tensor) -> None:
        """Keep the probabilities of a micro-batch, on its device; nothing waits for it."""
        self._ids.append(micro_batch.ids_N[:, None].to(logits_NC.device, non_blocking=True))
        self._probabilities.append(torch.sigmoid(logits_NC.float()))

    def gathered(self) -> SetPredictions:
        """Return all ranks' answers, on every rank. A synchronisation point, and a collective."""
        ids_N, order = gather_rows(torch.cat(self._ids)).cpu()[:, 0].sort()
        return SetPredictions(ids_N, gather_rows(torch.cat(self._probabilities)).cpu()[order])


def predicted_sets(probabilities_NC: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Return which classes the answer to each sample holds: bool [N, C]."""
    return probabilities_NC.double() >= torch.tensor(thresholds, dtype=torch.float64, device=probabilities_NC.device)


def set_metrics(probabilities_NC: Tensor, labels_NC: Tensor, thresholds: Sequence[float]) -> SetMetrics:
    """Return the metrics of samples with these labels, bool [N, C]; NaN without samples."""
    predicted_NC = predicted_sets(probabilities_NC, thresholds)
    hits, true, predicted = (
        sets_NC.sum(dim=0).tolist() for sets_NC in (predicted_NC & labels_NC, labels_NC, predicted_NC)
    )
    f1_C = [2 * h / max(t + p, 1) for h, t, p in zip(hits, true, predicted, strict=True)]
    right, count = int((predicted_NC == labels_NC).all(dim=1).sum()), len(labels_NC)
    accuracy = right / count if count else float("nan")
    return SetMetrics(
        accuracy=accuracy,
        subset_accuracy=accuracy,
        map=sum(average_precisions(probabilities_NC, labels_NC)) / len(f1_C) if count else float("nan"),
        macro_f1=sum(f1_C) / len(f1_C) if count else float("nan"),
        micro_f1=2 * sum(hits) / max(sum(true) + sum(predicted), 1) if count else float("nan"),
        thresholds=tuple(thresholds),
    )


def average_precisions(probabilities_NC: Tensor, labels_NC: Tensor) -> list[float]:
    """Return the average precision of each class: the sum over its cuts of precision times what recall gains there.

    Samples of equal probability are on one side of every cut. 0 for a class without a sample, as in scikit-learn; NaN
    where a probability is NaN.
    """
    found = []
    for hits_K, taken_K, _ in _cuts(probabilities_NC, labels_NC):
        total = max(int(hits_K[-1]), 1) if len(hits_K) else 1
        gained_K = torch.diff(hits_K, prepend=hits_K.new_zeros(1))
        found.append(float((gained_K.double() / total * (hits_K / taken_K.double())).sum()))
    is_nan = probabilities_NC.isnan().any(dim=0).tolist()
    return [float("nan") if nan else value for value, nan in zip(found, is_nan, strict=True)]


def choose_thresholds(probabilities_NC: Tensor, labels_NC: Tensor) -> list[float]:
    """Return for each class the threshold of the largest F1 over these samples; 0.5 where they tell of none.

    It lies in the middle between two probabilities that occur, or of the least one and 0, so that a last bit does not
    matter. Of equally good ones it is the nearest to 0.5.
    """
    thresholds = []
    for hits_K, taken_K, values_K in _cuts(probabilities_NC, labels_NC):
        if not len(hits_K) or not hits_K[-1] or values_K.isnan().any():
            thresholds.append(DEFAULT_THRESHOLD)
            continue
        f1_K = 2 * hits_K / (taken_K + hits_K[-1]).double()
        middles_K = (values_K + torch.cat([values_K[1:], values_K.new_zeros(1)])) / 2
        best = middles_K[f1_K == f1_K.max()]
        thresholds.append(float(best[(best - DEFAULT_THRESHOLD).abs().argmin()]))
    return thresholds


def per_class(
    probabilities_NC: Tensor, labels_NC: Tensor, class_names: Sequence[str], thresholds: Sequence[float]
) -> list[dict[str, Any]]:
    """Return count, precision, recall, F1, average precision and threshold of each class."""
    predicted_NC = predicted_sets(probabilities_NC, thresholds)
    columns = zip(
        class_names,
        (predicted_NC & labels_NC).sum(dim=0).tolist(),
        labels_NC.sum(dim=0).tolist(),
        predicted_NC.sum(dim=0).tolist(),
        average_precisions(probabilities_NC, labels_NC),
        thresholds,
        strict=True,
    )
    return [
        {
            "name": name,
            "count": count,
            "precision": hits / max(predicted, 1),
            "recall": hits / max(count, 1),
            "f1": 2 * hits / max(count + predicted, 1),
            "average_precision": average_precision,
            "threshold": threshold,
        }
        for name, hits, count, predicted, average_precision, threshold in columns
    ]


def _cuts(probabilities_NC: Tensor, labels_NC: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return for each class its cuts, the highest first: hits above each, int64, all above, and the least probability.

    There is a cut behind each probability that occurs, float64.
    """
    found = []
    for values_N, labels_N in zip(probabilities_NC.double().T, labels_NC.T, strict=True):
        values_N, order = values_N.sort(descending=True, stable=True)
        is_last_N = torch.ones(len(values_N), dtype=torch.bool)
        is_last_N[:-1] = values_N[1:] != values_N[:-1]
        last_K = is_last_N.nonzero()[:, 0]
        found.append((labels_N[order].cumsum(0)[last_K], last_K + 1, values_N[last_K]))
    return found
