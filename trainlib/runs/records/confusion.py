"""The confusion matrix in an evaluation file: whole for few classes, only what is not zero for many.

`confusion` has a row for each true class and a column for each predicted one. Of 5,000 classes that would be 75 MB of
zeros: above MOST_WHOLE classes there is `confusion_counts` in its place, lists of [true, predicted, count].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_WHOLE = 100  # classes

Counts = Sequence[Sequence[int]]  # [true class, predicted class, how often], sorted, without zeros


def entry(counts: Counts, num_classes: int) -> dict[str, Any]:
    """Return the entry of an evaluation file that holds these counts."""
    if num_classes > MOST_WHOLE:
        return {"confusion_counts": [list(count) for count in counts]}
    return {"confusion": whole(counts, num_classes)}


def counts_in(evaluation: Mapping[str, Any]) -> Counts:
    """Return the counts that an evaluation file holds, in either form."""
    if evaluation.get("confusion") is None:
        counts: Counts = evaluation["confusion_counts"]
        return counts
    return [
        (true, predicted, count)
        for true, row in enumerate(evaluation["confusion"])
        for predicted, count in enumerate(row)
        if count
    ]


def whole(counts: Counts, num_classes: int) -> list[list[int]]:
    """Return the matrix of these counts, C rows of C columns."""
    matrix = [[0] * num_classes for _ in range(num_classes)]
    for true, predicted, count in counts:
        matrix[true][predicted] = count
    return matrix
