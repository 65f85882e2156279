"""The figures of several runs side by side, the best of each marked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from launch.report.facts import RunFacts


@dataclass(frozen=True)
class Score:
    """A figure of one run, and whether it is the best of all runs."""

    value: float | None
    best: bool


def results(runs: Sequence[RunFacts]) -> list[tuple[Score, ...]]:
    """Return for each run its test accuracy, test loss, best validation accuracy and best validation loss."""
    columns = [
        _scores([run.test() for run in runs], max),
        _scores([run.test("loss") for run in runs], min),
        _scores([_best_val(run, "accuracy") for run in runs], max),
        _scores([_best_val(run, "loss") for run in runs], min),
    ]
    return list(zip(*columns, strict=True))


def class_scores(runs: Sequence[RunFacts]) -> tuple[str, list[tuple[str, list[Score]]]] | None:
    """Return the split and, for each class, its name and its F1 in each run.

    None unless all runs were evaluated on the same split with the same classes.
    """
    evaluations = [run.evaluations[0] for run in runs if run.evaluations]
    if len(evaluations) < len(runs) or len({(each.split, *each.classes) for each in evaluations}) > 1:
        return None
    return evaluations[0].split, [
        (name, _scores([evaluation.per_class[index].f1 for evaluation in evaluations], max))
        for index, name in enumerate(evaluations[0].classes)
    ]


def _best_val(run: RunFacts, key: str) -> float | None:
    best = run.best_val(key)
    return best[1] if best else None


def _scores(values: Sequence[float | None], best: Callable[[Iterable[float]], float]) -> list[Score]:
    """Return one score for each run; none is the best where all are equal."""
    present = [value for value in values if value is not None]
    chosen = best(present) if len(set(present)) > 1 else None
    return [Score(value, value is not None and value == chosen) for value in values]
