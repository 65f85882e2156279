"""The figures of an evaluation as text and tables for the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainlib.runs.records import confusion
from trainlib.runs.terminal.printable import printable
from trainlib.runs.terminal.tables import Column, Table

MAX_CLASSES = 30  # rows of the table of classes; of more classes, those with the lowest F1 are shown
MAX_PAIRS = 20
NAME_WIDTH = 24

Evaluation = Mapping[str, Any]

_NUMBERS = (
    (
        ("loss", "loss"),
        ("accuracy", "accuracy"),
        ("mAP", "map"),
        ("top-5 accuracy", "top5_accuracy"),
        ("calibration error", "calibration_error"),
    ),
    (("macro F1", "macro_f1"), ("micro F1", "micro_f1"), ("balanced accuracy", "balanced_accuracy")),
)


def evaluation_text(evaluation: Evaluation, width: int) -> list[str | Table]:
    """Return all figures of an evaluation, in lines of at most `width` characters where that is possible.

    The confusion matrix is shown if it fits; instead of a larger one, the most frequent confusions are listed. Of
    sets of classes there is none.

    evaluation   as in evaluation-<split>.json
    """
    numbers = [
        "   ".join(f"{label} {evaluation[key]:.4f}" for label, key in line if evaluation.get(key) is not None)
        for line in (*_NUMBERS, [(name, name) for name in evaluation.get("own_metrics", [])])
    ]
    weights = "" if evaluation["weights"] == "checkpoint" else f"{evaluation['weights']} "
    title = f"{evaluation['split']}: {evaluation['count']:,} images, {weights}weights of step {evaluation['step']:,}"
    confusions = [] if "thresholds" in evaluation else ["", *_confusions(evaluation, width)]
    return [title, *filter(None, numbers), "", *_classes(evaluation), *confusions]


def _classes(evaluation: Evaluation) -> list[str | Table]:
    """Return the table of the classes that occur or were predicted; of many classes, those with the lowest F1."""
    of_sets = "thresholds" in evaluation
    rows = evaluation["per_class"] if of_sets else [evaluation["per_class"][i] for i in _occurring(evaluation)]
    heading = []
    if len(rows) > MAX_CLASSES:
        heading = [f"the {MAX_CLASSES} classes of the lowest F1, of {len(rows)} (all of them: --json)"]
        rows = sorted(rows, key=lambda row: row["f1"])[:MAX_CLASSES]
    keys = ["precision", "recall", "f1", *(["average_precision", "threshold"] if of_sets else [])]
    figures = [
        Column(key.replace("_", " "), ["" if row[key] is None else f"{row[key]:.4f}" for row in rows], on_right=True)
        for key in keys
    ]
    names = Column("class", [_short(row["name"]) for row in rows])
    counts = Column(f"{'count':>7}", [f"{row['count']:,}" for row in rows], on_right=True)
    return [*heading, Table([names, counts, *figures])]


def _confusions(evaluation: Evaluation, width: int) -> list[str | Table]:
    seen, title = _occurring(evaluation), "true class (row) and what it was taken for (column)"
    if 2 * len(seen) > width:
        return _worst_pairs(evaluation)
    matrix = _matrix(evaluation, seen)
    fits = max(map(len, (title, *str(matrix).splitlines()))) <= width
    return [title, matrix] if fits else _worst_pairs(evaluation)


def _matrix(evaluation: Evaluation, seen: Sequence[int]) -> Table:
    """Return the confusion matrix: rows are true classes, columns predicted ones by their number; zeros are dots."""
    counts = {(true, predicted): count for true, predicted, count in confusion.counts_in(evaluation)}
    cells = [[str(counts.get((row, column), ".")) for column in seen] for row in seen]
    numbers = [str(index) for index in seen]
    cell_width = max(len(text) for row in [*cells, numbers] for text in row)
    predicted = [
        Column(f"{number:>{cell_width}}", column, on_right=True, styles={".": "dim"})
        for number, column in zip(numbers, zip(*cells, strict=True), strict=True)
    ]
    names = [_short(evaluation["classes"][index]) for index in seen]
    return Table([Column("", numbers, on_right=True), Column("", names), *predicted])


def _worst_pairs(evaluation: Evaluation) -> list[str | Table]:
    classes = evaluation["classes"]
    pairs = [(count, row, column) for row, column, count in confusion.counts_in(evaluation) if row != column]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    if not pairs:
        return ["no image was taken for another class"]
    shown = pairs[:MAX_PAIRS]
    columns = [
        Column("count", [f"{count:,}" for count, _, _ in shown], on_right=True),
        Column(
            "of class",
            [f"{count / evaluation['per_class'][row]['count']:.1%}" for count, row, _ in shown],
            on_right=True,
        ),
        Column("true", [_short(classes[row]) for _, row, _ in shown]),
        Column("taken for", [_short(classes[column]) for _, _, column in shown]),
    ]
    return [f"the most frequent confusions, {len(shown)} of {len(pairs)} (the whole matrix: --json)", Table(columns)]


def _occurring(evaluation: Evaluation) -> list[int]:
    """Return the classes that some image belongs to or was taken for."""
    counts = confusion.counts_in(evaluation)
    return sorted({label for true, predicted, _ in counts for label in (true, predicted)})


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 3]}..."
