"""The figure by which runs are ranked, of a sweep or of a report: that of `checkpoint.best`, never one of the test."""

from __future__ import annotations

from typing import Literal

from trainlib.config import Config
from trainlib.runs.attempt.status import Run
from trainlib.runs.files.json_records import Record
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.rows import METRICS_FILE
from trainlib.runs.records.shapes import ROW

Mode = Literal["min", "max"]


def ranked_by(config: Config) -> tuple[str, Mode]:
    """Return the metric that ranks runs of a configuration, and whether small or large values are good.

    It is that of `checkpoint.best`; where that is null, the validation's accuracy, or mean average precision where
    samples have several labels.
    """
    if (best := config.checkpoint.best) is not None:
        return best.metric, best.mode or "max"
    return _without_best(of_sets=config.data.has_sets)


def recorded_metric(config: Record) -> tuple[str, Mode] | None:
    """Return what `ranked_by` does for the values of a run's config.yaml, which may be damaged; then None."""
    checkpoint, data = config.get("checkpoint"), config.get("data")
    if not (isinstance(checkpoint, dict) and isinstance(data, dict)):
        return None
    best = checkpoint.get("best")
    if best is None:
        return _without_best(of_sets=data.get("labels") == "several")
    metric, mode = (best.get("metric"), best.get("mode")) if isinstance(best, dict) else (None, None)
    return (metric, "min" if mode == "min" else "max") if isinstance(metric, str) and "/" in metric else None


def _without_best(*, of_sets: bool) -> tuple[str, Mode]:
    return ("val/map" if of_sets else "val/accuracy"), "max"


def validated(config: Config, run: Run) -> float | None:
    """Return a run's value of the metric that ranks it: of its best checkpoint; the newest one where it keeps none.

    A run that has not ended, or is to be continued, has no summary: then its rows say which one is the best so far.
    None where the run has none, as of data without a validation split.
    """
    metric, mode = ranked_by(config)
    split, _, quantity = metric.partition("/")
    if config.checkpoint.best is None:
        newest = run.last.get((split, None)) or run.last.get((split, "epoch")) or {}
        value = newest.get(quantity)
    elif (value := (run.summary.get("best") or {}).get("value")) is None:
        rows = RunFiles(run.directory).lines(METRICS_FILE, ROW)
        found = [row.get(quantity) for row in rows if row["split"] == split and row.get("scope") in (None, "epoch")]
        value = (min if mode == "min" else max)((one for one in found if isinstance(one, int | float)), default=None)
    return value if isinstance(value, int | float) else None
