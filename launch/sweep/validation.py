"""The figure by which the runs of a sweep are ranked: always one of the validation, never of the test."""

from __future__ import annotations

from typing import Literal

from trainlib.config import Config
from trainlib.runs.attempt.status import Run


def ranked_by(config: Config) -> tuple[str, Literal["min", "max"]]:
    """Return the metric that ranks runs of a configuration, and whether small or large values are good.

    It is that of `checkpoint.best`; where that is null, the validation's accuracy, or mean average precision where
    samples have several labels.
    """
    if (best := config.checkpoint.best) is not None:
        return best.metric, best.mode or "max"
    return ("val/map" if config.data.has_sets else "val/accuracy"), "max"


def validated(config: Config, run: Run) -> float | None:
    """Return a run's value of the metric that ranks it: of its best checkpoint, else the newest one.

    None where the run has none, as of data without a validation split.
    """
    split, _, quantity = ranked_by(config)[0].partition("/")
    newest = run.last.get((split, None)) or run.last.get((split, "epoch")) or {}
    best = (run.summary.get("best") or {}) if config.checkpoint.best is not None else {}
    value = best.get("value", newest.get(quantity))
    return value if isinstance(value, int | float) else None
