"""What a model gets right and wrong on a set of samples, beyond loss and accuracy.

While an evaluation goes, each rank keeps five numbers for each of its samples on the device, which costs no waiting. At
the end they are brought together, once, in the samples' own order; all figures are computed from them there, so they
are the same on any number of ranks.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainlib.config import Config, LossConfig
from trainlib.data.batches.loader import BatchLoader, MicroBatch
from trainlib.data.survey.looking import as_image
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.files.json_records import to_json
from trainlib.runs.records import confusion
from trainlib.training.metrics.class_counts import is_in_top
from trainlib.training.metrics.label_sets import SetPredictionCollector, SetPredictions
from trainlib.training.metrics.sums import Metrics, gather_rows

CALIBRATION_BINS = 15
NUM_MISTAKES = 36
PICTURE_PIXELS = 160  # the longer side of a mistake's picture, at most


def class_probabilities(logits_NC: Tensor, loss: LossConfig, *, of_sets: bool = False) -> Tensor:
    """float32 [N, C]: softmax, or a sigmoid for each class where the loss was trained on that; rows then sum to any.

    of_sets   the model answers with sets of classes: always a sigmoid
    """
    logits_NC = logits_NC.float()
    return torch.sigmoid(logits_NC) if of_sets or _has_sigmoids(loss) else torch.softmax(logits_NC, dim=1)


def label_losses(logits_NC: Tensor, labels_N: Tensor, loss: LossConfig) -> Tensor:
    """Return -ln of the probability that each sample's label gets, float32 [N]; computed in logarithms, so finite."""
    logits_NC = logits_NC.float()
    logs_NC = functional.logsigmoid(logits_NC) if _has_sigmoids(loss) else functional.log_softmax(logits_NC, dim=1)
    return -logs_NC.gather(1, labels_N[:, None])[:, 0]


def _has_sigmoids(loss: LossConfig) -> bool:
    return loss.activation == "sigmoid" or loss.name == "BCEWithLogitsLoss"


@dataclass(frozen=True)
class Predictions:
    """The model's answers to a set of samples, ordered by their indices; all on the CPU.

    ids_N          int64: the samples' indices in their image set
    predicted_N    int64: the class of the largest logit
    in_top_N       bool: whether the label is among the five largest logits
    confidence_N   float64: the probability of the predicted class
    losses_N       float64: see `label_losses`
    """

    ids_N: Tensor
    predicted_N: Tensor
    in_top_N: Tensor
    confidence_N: Tensor
    losses_N: Tensor

    def facts(self, labels_N: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
        """Return what an evaluation file says of the classes, beside its metrics."""
        counts = confusion_counts(labels_N, self.predicted_N, len(class_names))
        return {
            "top5_accuracy": int(self.in_top_N.sum()) / max(len(labels_N), 1),
            "calibration_error": calibration_error(self.confidence_N, self.predicted_N == labels_N),
            "classes": list(class_names),
            **confusion.entry(counts, len(class_names)),
            "per_class": per_class(labels_N, self.predicted_N, class_names),
        }

    def mistakes(self, labels_N: Tensor, count: int) -> list[dict[str, Any]]:
        """Return `count` wrong predictions, the largest loss first; `index` is the row here."""
        wrong = (self.predicted_N != labels_N).nonzero()[:, 0]
        worst_first = self.losses_N[wrong].sort(descending=True, stable=True).indices
        return [
            {
                "index": index,
                "label": int(labels_N[index]),
                "predicted": int(self.predicted_N[index]),
                "probability": float(self.confidence_N[index]),
                "loss": float(self.losses_N[index]),
            }
            for index in wrong[worst_first[:count]].tolist()
        ]


def collector(config: Config, num_classes: int, device: torch.device) -> PredictionCollector | SetPredictionCollector:
    """Return what keeps the answers to an evaluation's samples: one class each, or a set of classes each."""
    if config.data.has_sets:
        return SetPredictionCollector(num_classes, device)
    return PredictionCollector(config.loss, device)


class PredictionCollector:
    """Keeps the answers to this rank's samples while an evaluation goes: `add` is its `on_batch`."""

    def __init__(self, loss: LossConfig, device: torch.device):
        self._loss = loss
        self._rows = [torch.empty(0, 5, dtype=torch.float64, device=device)]

    def add(self, micro_batch: MicroBatch, logits_NC: Tensor) -> None:
        """Keep the predictions for a micro-batch, on its device; nothing waits for it."""
        probabilities_NC = class_probabilities(logits_NC, self._loss)
        predicted_N1 = logits_NC.argmax(dim=1, keepdim=True)
        columns = (
            micro_batch.ids_N.to(logits_NC.device, non_blocking=True),
            predicted_N1[:, 0],
            is_in_top(logits_NC, micro_batch.targets.labels_N),
            probabilities_NC.gather(1, predicted_N1)[:, 0],
            label_losses(logits_NC, micro_batch.targets.labels_N, self._loss),
        )
        self._rows.append(torch.stack([column.double() for column in columns], dim=1))  # float64 holds all of them

    def gathered(self) -> Predictions:
        """All ranks' answers, on every rank. A synchronisation point."""
        rows_N5 = gather_rows(torch.cat(self._rows)).cpu()
        ids_N, order = rows_N5[:, 0].long().sort()
        _, predicted_N, in_top_N, confidence_N, losses_N = rows_N5[order].unbind(dim=1)
        return Predictions(ids_N, predicted_N.long(), in_top_N.bool(), confidence_N, losses_N)


def describe(
    predictions: Predictions | SetPredictions,
    batches: BatchLoader,
    ids_N: Tensor,
    class_names: Sequence[str],
    metrics: Metrics,
    source: Mapping[str, Any],
    file_of: Callable[[int], str | None] = lambda index: None,
) -> dict[str, Any]:
    """Return the evaluation of exactly these samples as one JSON object, the contents of `evaluation-<split>.json`.

    ids_N    their indices in the image set of `batches`, ascending
    source   what was evaluated: {"split", "step", "weights"}
    file_of  where the file of the sample in a row of `ids_N` is; None for samples that are no files
    """
    assert torch.equal(predictions.ids_N, ids_N), "each sample is counted once"
    labels_N = batches.labels_N[ids_N]
    if isinstance(predictions, SetPredictions):
        assert metrics.thresholds is not None
        facts = predictions.facts(labels_N, class_names, metrics.thresholds)
        mistakes = predictions.mistakes(labels_N, metrics.thresholds, NUM_MISTAKES)
    else:
        facts, mistakes = predictions.facts(labels_N, class_names), predictions.mistakes(labels_N, NUM_MISTAKES)
    if mistakes:
        pictures = batches.raw_images(ids_N[[mistake["index"] for mistake in mistakes]])
        mistakes = [
            mistake | {"file": file_of(mistake["index"]), "png": _png(image)}
            for mistake, image in zip(mistakes, pictures, strict=True)
        ]
    own = {"own_metrics": list(metrics.own)} if metrics.own else {}
    return {**source, **metrics.asdict(), **own, **facts, "mistakes": mistakes}


def write_evaluation(run: Path, evaluation: Mapping[str, Any]) -> None:
    """Replace `evaluation-<split>.json` of a run directory. Raises OSError when it cannot be written."""
    write_atomically(run / f"evaluation-{evaluation['split']}.json", to_json(evaluation) + "\n")


def confusion_counts(labels_N: Tensor, predicted_N: Tensor, num_classes: int) -> confusion.Counts:
    """Return [true class, predicted class, how often] for each pair that occurs, sorted."""
    pairs_P, counts_P = torch.unique(labels_N * num_classes + predicted_N, return_counts=True)
    return [
        [pair // num_classes, pair % num_classes, count]
        for pair, count in zip(pairs_P.tolist(), counts_P.tolist(), strict=True)
    ]


def per_class(labels_N: Tensor, predicted_N: Tensor, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Count, precision, recall and F1 of each class; 0 where there is nothing to divide by."""
    hits_C, true_C, predicted_C = (
        torch.bincount(classes_N, minlength=len(class_names))
        for classes_N in (labels_N[labels_N == predicted_N], labels_N, predicted_N)
    )
    return [
        {
            "name": name,
            "count": count,
            "precision": num_correct / max(predicted, 1),
            "recall": num_correct / max(count, 1),
            "f1": 2 * num_correct / max(count + predicted, 1),
        }
        for name, num_correct, count, predicted in zip(
            class_names, hits_C.tolist(), true_C.tolist(), predicted_C.tolist(), strict=True
        )
    ]


def calibration_error(confidence_N: Tensor, correct_N: Tensor) -> float:
    """Return the expected calibration error (Guo et al., 2017): 15 bins of equal width, (a, b], weighted by count.

    confidence_N   float64: the probability of the predicted class
    """
    bins_N = (confidence_N * CALIBRATION_BINS).ceil().long().sub(1).clamp(0, CALIBRATION_BINS - 1)
    gaps_B = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)
    gaps_B.index_add_(0, bins_N, correct_N.double() - confidence_N)
    return float(gaps_B.abs().sum()) / max(len(confidence_N), 1)


def _png(image_CHW: Tensor) -> str:
    """uint8 [C, H, W] as base64 of a PNG, made smaller where it is large."""
    picture = as_image(image_CHW)
    picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
