"""Comparison of several runs: their ranking, their figures side by side, and what differs in their configurations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from launch.report.facts.run_facts import RunFacts
from launch.sweep.repeated.noise import Difference, difference
from launch.sweep.repeated.predictions import FILE, read_predictions
from launch.sweep.validation import Mode, recorded_metric
from trainlib.config import canonical_precision
from trainlib.errors import TrainlaunchError
from trainlib.runs.files.json_records import Record

ABSENT = "—"


@dataclass(frozen=True)
class Ranking:
    """The runs, best first, and what they were compared by, in words.

    metric   by which they were compared, as the configuration names it, such as val/macro_f1; and whether small or
             large values are good
    """

    runs: list[RunFacts]
    by: str
    metric: tuple[str, Mode] = ("val/accuracy", "max")


@dataclass(frozen=True)
class Score:
    """A figure of one run, and whether it is the best of all runs."""

    value: float | None
    best: bool


def ranking(runs: Sequence[RunFacts]) -> Ranking:
    """Rank runs by the best value of their metric, never by the test: a choice by that would spoil its figure.

    The metric is that of `checkpoint.best`, or accuracy on the validation split where the runs name several. Runs
    without a value come last; of equals, the one with the lower loss comes first, and then the order given.
    """
    named = {found for run in runs if (found := recorded_metric(run.config)) is not None}
    metric, mode = named.pop() if len(named) == 1 else ("val/accuracy", "max")

    def value(run: RunFacts) -> float | None:
        best = run.best(metric, mode)
        return best[1] if best else None

    def worse_last(run: RunFacts) -> tuple[bool, float, float]:
        found, loss = value(run), _value(run, "loss")
        sign = 1.0 if mode == "min" else -1.0
        return found is None, sign * (found or 0.0), float("inf") if loss is None else loss

    split, _, quantity = metric.partition("/")
    where = "in training" if split == "train" else "on the validation split"
    by = f"{'lowest' if mode == 'min' else 'best'} {quantity} {where}"
    if all(value(run) is None for run in runs):
        by = "the order given, as no run has " + ("a validation split" if split == "val" else metric)
    return Ranking(sorted(runs, key=worse_last), by, (metric, mode))


def noise(runs: Sequence[RunFacts]) -> list[tuple[str, str, Difference]]:
    """Return how much better on the test the first run is than each other one, and whether that is noise.

    Only of runs that have predictions of the same test samples (`predictions-test.csv` in their directories): a paired
    bootstrap. Each entry has the names of both runs.
    """
    found = {run.name: run.run.directory / FILE for run in runs}
    read = {name: read_predictions(file) for name, file in found.items() if file.is_file()}
    names = list(read)
    differences = []
    for name in names[1:]:
        with suppress(TrainlaunchError):  # of another split
            differences.append((names[0], name, difference(read[names[0]], read[name])))
    return differences


def config_differences(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Return the dotted keys, except the name, whose values are not the same in all runs, each with all values."""
    flat = [dict(_flat(run.config)) for run in runs]
    for config in flat:
        if "train.precision" in config:
            config["train.precision"] = canonical_precision(config["train.precision"])
    keys = dict.fromkeys(key for config in flat for key in config if key != "name")
    table = [(key, [shown(config.get(key, ABSENT)) for config in flat]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def shown(value: Any) -> str:
    """Return a value as YAML would have it, in one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(inner)}' for key, inner in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) and not value.is_integer() else str(value)


def results(ranked: Ranking) -> tuple[list[str], list[tuple[Score, ...]]]:
    """Return the titles of figures, and these of each run: test, best validations, and the metric that ranks them."""
    runs, (metric, mode) = ranked.runs, ranked.metric
    columns = {
        "test accuracy": _scores([run.test() for run in runs], max),
        "test loss": _scores([run.test("loss") for run in runs], min),
        "best val accuracy": _scores([_value(run, "accuracy") for run in runs], max),
        "best val loss": _scores([_value(run, "loss") for run in runs], min),
    }
    if (title := f"best {metric.replace('/', ' ')}") not in columns:
        values = [best[1] if (best := run.best(metric, mode)) else None for run in runs]
        columns[title] = _scores(values, min if mode == "min" else max)
    return list(columns), list(zip(*columns.values(), strict=True))


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


def _flat(config: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; a list, and an empty mapping, counts as one value."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(run: RunFacts, key: str) -> float | None:
    best = run.best_val(key)
    return best[1] if best else None


def _scores(values: Sequence[float | None], best: Callable[[Iterable[float]], float]) -> list[Score]:
    """Return one score for each run; none is the best where all are equal."""
    present = [value for value in values if value is not None]
    chosen = best(present) if len(set(present)) > 1 else None
    return [Score(value, value is not None and value == chosen) for value in values]
