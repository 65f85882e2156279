"""The evaluation files of a run, as trainlib writes them: evaluation-<split>.json."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainlib.runs.files import Record

Count = Annotated[int, Field(ge=0)]


class PerClass(BaseModel):
    """The figures of one class."""

    name: str
    count: Count
    precision: float | None
    recall: float | None
    f1: float | None


class Mistake(BaseModel):
    """A sample that was taken for another class, with the probability that the model gave that class.

    png   its picture, in base64
    """

    index: Count
    label: Count
    predicted: Count
    probability: float
    png: str

    @property
    def picture(self) -> str | None:
        """The picture as a `data:` address, which may hold nothing else; None if `png` is not the base64 of a PNG."""
        try:
            is_png = base64.b64decode(self.png, validate=True).startswith(b"\x89PNG")
        except ValueError:
            is_png = False
        return f"data:image/png;base64,{self.png}" if is_png else None


class Evaluation(BaseModel):
    """The evaluation of a model on one split.

    confusion   [true class][predicted class], counts
    mistakes    the most confident first
    """

    model_config = ConfigDict(frozen=True)

    split: str
    step: int
    weights: str
    count: Count
    loss: float | None
    accuracy: float | None
    top5_accuracy: float | None
    calibration_error: float | None
    classes: list[str]
    confusion: list[list[Count]]
    per_class: list[PerClass]
    mistakes: list[Mistake]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        num_classes = len(self.classes)
        sizes = {len(self.per_class), len(self.confusion), *map(len, self.confusion)}
        labels = {label for mistake in self.mistakes for label in (mistake.label, mistake.predicted)}
        if sizes != {num_classes} or not labels <= set(range(num_classes)):
            raise ValueError("the tables are not of as many classes as there are names")
        return self

    def confusions(self) -> list[Record]:
        """Return the pairs of classes that were confused, the most frequent first.

        Each has `label`, `predicted`, `count` and `share`, which is the count's part of all samples of the label.
        """
        found = [
            {"label": label, "predicted": predicted, "count": count, "share": count / sum(row)}
            for label, row in enumerate(self.confusion)
            for predicted, count in enumerate(row)
            if count and label != predicted
        ]
        return sorted(found, key=lambda pair: -pair["count"])


def read_evaluation(path: Path) -> Evaluation | None:
    """Return the evaluation in this file, None where it cannot be read or is not valid."""
    try:
        return Evaluation.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
