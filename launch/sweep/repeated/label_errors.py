"""Labels that are probably wrong, as `trainlib.inference.label_errors` finds them in out-of-fold predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.sweep.repeated.predictions import Predictions
from trainlib.errors import UserError
from trainlib.runs.files.durable import write_atomically


@dataclass(frozen=True)
class DoubtfulLabel:
    """A sample whose label is probably wrong.

    sample     its path, or index
    suggested  the class that the model which was not trained on it is surest of
    quality    the probability that this model gives its own label
    picture    a small one, as a data URL; None where it is not shown
    """

    sample: str
    label: str
    suggested: str
    quality: float
    picture: str | None = None


def as_numbers(found: Predictions) -> dict[str, Any]:
    """Return predictions as the program takes them. Raises UserError for samples with several labels."""
    place = {name: index for index, name in enumerate(found.classes)}
    if not set(found.labels) <= place.keys():
        raise UserError("label errors: are only known of samples with one label each (data.labels=one)")
    return {
        "samples": list(found.samples),
        "labels": [place[label] for label in found.labels],
        "probabilities": found.probabilities,
    }


def doubtful_labels(found: Predictions, answer: Sequence[Mapping[str, Any]]) -> list[DoubtfulLabel]:
    """Return the samples that the program names, in its order: the most doubtful first."""
    return [
        DoubtfulLabel(
            found.samples[one["row"]],
            found.labels[one["row"]],
            found.classes[one["suggested"]],
            one["quality"],
            one.get("picture"),
        )
        for one in answer
    ]


def write_table(file: Path, doubtful: Sequence[DoubtfulLabel], kind: str) -> None:
    """Write the samples as CSV, which `data.table` can read where `kind` is path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([kind, "label", "suggested", "quality"])
    writer.writerows([one.sample, one.label, one.suggested, f"{one.quality:.6f}"] for one in doubtful)
    write_atomically(file, text.getvalue())
