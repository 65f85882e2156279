"""An evaluation as text for a terminal. Pure: the JSON object in, lines out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_CLASSES = 30  # in the table of classes; of more, the worst are shown
MAX_PAIRS = 20
NAME_WIDTH = 24

Evaluation = Mapping[str, Any]


def evaluation_text(evaluation: Evaluation, width: int) -> str:
    """All figures of an evaluation (see `evaluation.describe`) in lines of at most `width` characters, if that can be.

    The confusion matrix is whole where it fits; of a larger one the most frequent confusions are listed.
    """
    numbers = "   ".join(
        f"{label} {evaluation[key]:.4f}"
        for label, key in (
            ("loss", "loss"),
            ("accuracy", "accuracy"),
            ("top-5 accuracy", "top5_accuracy"),
            ("calibration error", "calibration_error"),
        )
    )
    weights = "" if evaluation["weights"] == "checkpoint" else f"{evaluation['weights']} "
    title = f"{evaluation['split']}: {evaluation['count']:,} images, {weights}weights of step {evaluation['step']:,}"
    return "\n".join([title, numbers, "", *_classes(evaluation), "", *_confusions(evaluation, width)])


def _classes(evaluation: Evaluation) -> list[str]:
    """One line for each class that occurs or was predicted; of many classes those of the lowest F1."""
    seen = _occurring(evaluation)
    rows = [evaluation["per_class"][index] for index in seen]
    heading = []
    if len(rows) > MAX_CLASSES:
        heading = [f"the {MAX_CLASSES} classes of the lowest F1, of {len(rows)} (all of them: --json)"]
        rows = sorted(rows, key=lambda row: row["f1"])[:MAX_CLASSES]
    name_width = max(len("class"), *(len(_short(row["name"])) for row in rows))
    table = [f"{'class':<{name_width}}  {'count':>7}  precision  recall      f1"]
    for row in rows:
        figures = f"{row['precision']:>9.4f}  {row['recall']:.4f}  {row['f1']:.4f}"
        table.append(f"{_short(row['name']):<{name_width}}  {row['count']:>7,}  {figures}")
    return heading + table


def _confusions(evaluation: Evaluation, width: int) -> list[str]:
    matrix = _matrix(evaluation)
    return matrix if max(map(len, matrix)) <= width else _worst_pairs(evaluation)


def _matrix(evaluation: Evaluation) -> list[str]:
    """Rows are the true classes, columns the predicted ones, by their numbers in the rows' labels; zeros are dots."""
    seen = _occurring(evaluation)
    counts = [[evaluation["confusion"][row][column] for column in seen] for row in seen]
    cells = [[str(count) if count else "." for count in row] for row in counts]
    numbers = [str(index) for index in seen]
    names = [_short(evaluation["classes"][index]) for index in seen]
    cell_width = max(len(text) for row in [*cells, numbers] for text in row)
    number_width, name_width = max(map(len, numbers)), max(map(len, names))
    margin = " " * (number_width + 2 + name_width)
    lines = ["true class (row) and what it was taken for (column)", margin + _cells(numbers, cell_width)]
    for number, name, row in zip(numbers, names, cells, strict=True):
        lines.append(f"{number:>{number_width}}  {name:<{name_width}}{_cells(row, cell_width)}")
    return lines


def _cells(texts: Sequence[str], width: int) -> str:
    return "".join(f"  {text:>{width}}" for text in texts)


def _worst_pairs(evaluation: Evaluation) -> list[str]:
    classes, confusion = evaluation["classes"], evaluation["confusion"]
    pairs = [
        (confusion[row][column], row, column)
        for row in range(len(classes))
        for column in range(len(classes))
        if row != column and confusion[row][column]
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    if not pairs:
        return ["no image was taken for another class"]
    shown = pairs[:MAX_PAIRS]
    name_width = max(len(_short(classes[row])) for _, row, _ in shown)
    count_width = max(len("count"), len(f"{shown[0][0]:,}"))
    lines = [f"the most frequent confusions, {len(shown)} of {len(pairs)} (the whole matrix: --json)"]
    lines.append(f"{'count':>{count_width}}  of class  {'true':<{name_width}}  taken for")
    for count, row, column in shown:
        share = count / sum(confusion[row])
        pair = f"{_short(classes[row]):<{name_width}}  {_short(classes[column])}"
        lines.append(f"{count:>{count_width},}  {share:>8.1%}  {pair}")
    return lines


def _occurring(evaluation: Evaluation) -> list[int]:
    """The classes that some image is of, or was taken for."""
    confusion = evaluation["confusion"]
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    return [index for index, row in enumerate(confusion) if sum(row) or predicted[index]]


def _short(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 3]}..."
