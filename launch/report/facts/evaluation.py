"""The evaluation files of a run, as trainlib writes them: evaluation-<split>.json."""

from __future__ import annotations

import base64
from collections import Counter
from functools import cached_property
from itertools import chain
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from trainlib.runs.files.json_records import Record
from trainlib.runs.records import confusion
from trainlib.runs.terminal.printable import printable

_MOST_CLASSES = 100_000
_MOST_OF_TOP5 = 5  # classes: with no more than these, every answer is among the first five

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Figure = Annotated[float | None, Field(allow_inf_nan=False)]
# A file's name need not be valid Unicode, nor show.
Shown = Annotated[str | None, BeforeValidator(lambda value: printable(value) if isinstance(value, str) else value)]


class PerClass(BaseModel):
    """The figures of one class; the last two where samples have sets of classes."""

    name: str
    count: Count
    precision: Figure
    recall: Figure
    f1: Figure
    average_precision: Figure = None
    threshold: Figure = None


class Mistake(BaseModel):
    """A sample that was taken for another class, with the probability that the model gave that class.

    missed, added   of a sample with a set of classes, in place of label and predicted: those that the model did not
                    name, and those that it named besides; `surest` is the one of these that the probability is of
    loss            -ln of the probability that its own class got; None in older files
    file            where the picture is; None where it is no file, and in older files
    png             its picture, in base64
    """

    index: Count
    label: Count | None = None
    predicted: Count | None = None
    missed: list[Count] = []
    added: list[Count] = []
    surest: Count | None = None
    probability: Annotated[float, Field(allow_inf_nan=False)]
    loss: Figure = None
    file: Shown = None
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

    thresholds   of a model that names a set of classes for each sample, of each class; None of others
    counts      [true class, predicted class, how often], for each pair that occurs
    mistakes    the largest loss first; in older files, and of sets, the most confident
    """

    model_config = ConfigDict(frozen=True)

    split: str
    step: int
    weights: str
    count: Count
    loss: Figure
    accuracy: Figure
    top5_accuracy: Figure = None
    calibration_error: Figure = None
    macro_f1: Figure = None
    balanced_accuracy: Figure = None
    map: Figure = None
    micro_f1: Figure = None
    thresholds: list[Figure] | None = None
    classes: list[str]
    counts: list[tuple[Count, Count, Count]] = []
    per_class: list[PerClass]
    mistakes: list[Mistake]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.classes) != len(self.per_class) or not 0 < len(self.classes) <= _MOST_CLASSES:
            raise ValueError("there are not as many tables as names of classes")
        named = [(m.surest,) if self.thresholds is not None else (m.label, m.predicted) for m in self.mistakes]
        labels = {label for mistake in self.mistakes for label in (*mistake.missed, *mistake.added)}
        for label in chain.from_iterable(named):
            if label is None:
                raise ValueError("a mistake does not say what it is of")
            labels.add(label)
        labels |= {label for true, predicted, _ in self.counts for label in (true, predicted)}
        if max(labels, default=0) >= len(self.classes):
            raise ValueError("the tables are of more classes than there are names")
        return self

    @property
    def top5(self) -> float | None:
        """The top-5 accuracy where it tells anything: of more than five classes."""
        return self.top5_accuracy if len(self.classes) > _MOST_OF_TOP5 else None

    @property
    def worst_first(self) -> bool:
        """True if the mistakes are in the order of their losses."""
        return all(mistake.loss is not None for mistake in self.mistakes)

    def mistaken_pairs(self) -> list[tuple[int, int, int]]:
        """Return [true class, predicted class, how often] of the mistakes shown, the most frequent first."""
        pairs = Counter((mistake.label, mistake.predicted) for mistake in self.mistakes)
        found = [(label, predicted, count) for (label, predicted), count in pairs.items()]
        return sorted(((a, b, n) for a, b, n in found if a is not None and b is not None), key=lambda pair: -pair[2])

    @cached_property
    def confusion(self) -> list[list[int]]:
        """The confusion matrix: a row for each true class, a column for each predicted one."""
        return confusion.whole(self.counts, len(self.classes))

    def confusions(self) -> list[Record]:
        """Return the pairs of classes that were confused, the most frequent first.

        Each has `label`, `predicted`, `count` and `share`, which is the count's part of all samples of the label.
        """
        totals = [0] * len(self.classes)
        for label, _, count in self.counts:
            totals[label] += count
        found = [
            {"label": label, "predicted": predicted, "count": count, "share": count / totals[label]}
            for label, predicted, count in self.counts
            if count and label != predicted
        ]
        return sorted(found, key=lambda pair: -pair["count"])


def evaluation_of(record: Record) -> Evaluation | None:
    """Return the evaluation that a file holds, None where it is not valid."""
    if "confusion" in record:
        matrix = record["confusion"]
        num_classes = len(record["classes"]) if isinstance(record.get("classes"), list) else 0
        if not _is_square(matrix, num_classes):
            return None
    try:
        counts = [] if record.get("thresholds") is not None else confusion.counts_in(record)
        return Evaluation.model_validate(_plain(record) | {"counts": counts})
    except (KeyError, ValidationError):
        return None


def _is_square(matrix: Any, size: int) -> bool:
    return isinstance(matrix, list) and {
        len(matrix),
        *(len(row) if isinstance(row, list) else -1 for row in matrix),
    } == {size}


def _plain(record: Record) -> Record:
    """Return a record whose names of classes are valid Unicode: a folder's name need not be."""
    classes = record.get("classes")
    per_class = record.get("per_class")
    if isinstance(classes, list):
        classes = [printable(name) if isinstance(name, str) else name for name in classes]
    if isinstance(per_class, list):
        per_class = [
            line | {"name": printable(line["name"])}
            if isinstance(line, dict) and isinstance(line.get("name"), str)
            else line
            for line in per_class
        ]
    return record | {"classes": classes, "per_class": per_class}
