"""Files of predictions, as `launch eval --predictions` writes them: read, pooled, and the figures of their samples."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainlib.errors import TrainlaunchError
from trainlib.platform.regular_files import read_regular
from trainlib.runs.files.durable import write_atomically

FILE = "predictions-test.csv"  # in a run's directory
PROBABILITY = "probability_"
MOST_BYTES = 1 << 32
_ESCAPED = re.compile(r"'[=+\-@\t\r\n']")
_FORMULA = re.compile(r"(?![+-]?[0-9]+(\.[0-9]*)?\Z)[=+\-@\t\r\n']")  # what a spreadsheet would compute, or '
_LEAST = 2.0**-52  # a probability that counts as more than none, as in scikit-learn's log_loss


@dataclass(frozen=True)
class Predictions:
    """The rows of a file: what each sample is, its label, the answer, and the probability of each class.

    kind   path or index: what `samples` are
    """

    kind: str
    samples: Sequence[str]
    labels: Sequence[str]
    answers: Sequence[str]
    classes: Sequence[str]
    probabilities: Sequence[Sequence[float]]

    @property
    def is_right(self) -> list[bool]:
        """Return for each sample whether its answer is its label."""
        return [label == answer for label, answer in zip(self.labels, self.answers, strict=True)]


def read_predictions(file: Path) -> Predictions:
    """Return what is in a file. Raises TrainlaunchError for one of another form."""
    try:
        content = read_regular(file, MOST_BYTES).decode()
        header, *rows = csv.reader(io.StringIO(content, newline=""))
        kind, label, answer, *columns = header
        if kind not in ("path", "index") or (label, answer) != ("label", "prediction"):
            raise ValueError("its columns are others")
        if not (content.endswith("\n") and {len(row) for row in rows} == {len(header)}):
            raise ValueError("a part of it is missing")
        return Predictions(
            kind,
            [_name(row[0]) for row in rows],
            [_name(row[1]) for row in rows],
            [_name(row[2]) for row in rows],
            [_name(column.removeprefix(PROBABILITY)) for column in columns],
            [[float(value) for value in row[3:]] for row in rows],
        )
    except (OSError, ValueError, csv.Error) as error:
        raise TrainlaunchError(
            f"{file}: is no whole file of predictions ({error}): remove it, and it is made anew"
        ) from error


def _name(cell: str) -> str:
    """Return a name without the ' that the file has before what a spreadsheet would compute."""
    return cell[1:] if _ESCAPED.match(cell) else cell


def _cell(name: str) -> str:
    """Return a name as `_name` takes it."""
    return f"'{name}" if _FORMULA.match(name) else name


def pooled(parts: Mapping[str, Predictions]) -> Predictions:
    """Return the predictions of all parts together. Raises TrainlaunchError where a sample is in two of them.

    parts   by the name of their run
    """
    first = next(iter(parts.values()))
    seen: dict[str, str] = {}
    for name, part in parts.items():
        if part.classes != first.classes:
            raise TrainlaunchError(f"{name}: its predictions have other classes than those of {next(iter(parts))}")
        for sample in part.samples:
            if seen.setdefault(sample, name) != name:
                raise TrainlaunchError(f"{sample} is in two folds, {seen[sample]} and {name}: were the data changed?")
    every = parts.values()
    return Predictions(
        first.kind,
        [value for part in every for value in part.samples],
        [value for part in every for value in part.labels],
        [value for part in every for value in part.answers],
        first.classes,
        [value for part in every for value in part.probabilities],
    )


def write_pooled(file: Path, parts: Mapping[str, Predictions]) -> None:
    """Write the predictions of all parts as one table, whose first column names the run that each row is of."""
    whole = pooled(parts)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", whole.kind, "label", "prediction", *(PROBABILITY + _cell(name) for name in whole.classes)])
    for name, part in parts.items():
        rows = zip(part.samples, part.labels, part.answers, part.probabilities, strict=True)
        writer.writerows([name, *map(_cell, names), *values] for *names, values in rows)
    write_atomically(file, text.getvalue())


def figures(found: Predictions) -> dict[str, float]:
    """Return accuracy, balanced accuracy and macro F1 of samples with one label each, and their mean log loss.

    As scikit-learn defines them: classes without a sample do not count for the balanced accuracy, those without a
    sample and an answer not for the F1.
    """
    place = {name: index for index, name in enumerate(found.classes)}
    if not set(found.labels) <= place.keys():
        raise TrainlaunchError("predictions have labels that are none of their classes: remove them, to have them anew")
    count = len(found.labels)
    true, answered = Counter(found.labels), Counter(found.answers)
    right = Counter(label for label, is_right in zip(found.labels, found.is_right, strict=True) if is_right)
    losses = (
        -math.log(max(values[place[label]] / (math.fsum(values) or 1.0), _LEAST))
        for label, values in zip(found.labels, found.probabilities, strict=True)
    )
    named = {*true, *answered}
    return {
        "loss": math.fsum(losses) / count,
        "accuracy": right.total() / count,
        "macro_f1": math.fsum(2 * right[name] / (true[name] + answered[name]) for name in sorted(named)) / len(named),
        "balanced_accuracy": math.fsum(right[name] / true[name] for name in sorted(true)) / len(true),
    }
