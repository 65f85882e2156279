"""Comparison of several runs: their ranking, and the differences of their configurations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from launch.report.facts import RunFacts
from trainlib.config import canonical_precision
from trainlib.runs.files.json_records import Record

ABSENT = "—"


@dataclass(frozen=True)
class Ranking:
    """The runs, best first, and the metric that they were compared by, in words."""

    runs: list[RunFacts]
    by: str


def ranking(runs: Sequence[RunFacts]) -> Ranking:
    """Rank runs by their test accuracy where every run has one, otherwise by their best validation accuracy.

    Runs without it come last; of equals, the one with the lower loss comes first, and then the order given.
    """
    tested = all(run.test() is not None for run in runs)

    def worse_last(run: RunFacts) -> tuple[bool, float, float]:
        accuracy = run.test() if tested else _value(run, "accuracy")
        loss = run.test("loss") if tested else _value(run, "loss")
        return accuracy is None, -(accuracy or 0.0), float("inf") if loss is None else loss

    by = "accuracy on the test split" if tested else "best accuracy on the validation split"
    return Ranking(sorted(runs, key=worse_last), by)


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
