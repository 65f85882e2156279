"""How far a trial has come, and how good it was at each rung: read from its run directory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.sweep.search.halving import FAILED
from launch.sweep.search.settings import Search
from trainlib.runs.files.json_records import Record, read_json
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.rows import METRICS_FILE
from trainlib.runs.records.shapes import ROW


@dataclass(frozen=True)
class Trial:
    """The results of a trial so far.

    at_rungs      its metric at each rung that it came to, or where it ended before; None where that is not known yet
    is_complete   whether it has trained to its end
    last          the metric after its last epoch; None before the first
    why_failed    None where it has not failed
    epochs        with a result
    """

    at_rungs: Sequence[float | None] = ()
    is_complete: bool = False
    last: float | None = None
    why_failed: str | None = None
    epochs: int = 0

    @property
    def final(self) -> float | None:
        """Return the metric at the trial's end; None before it, and where it is no number."""
        return self.last if self.is_complete and self.last is not None and math.isfinite(self.last) else None

    def scores(self, search: Search) -> list[float | None]:
        """Return what `halving.decide_targets` takes: low ones are better."""
        sign = 1.0 if search.mode == "min" else -1.0
        missing = FAILED if self.why_failed is not None else None
        return [missing if v is None else FAILED if math.isnan(v) else sign * v for v in self.at_rungs]

    def first_score(self, search: Search) -> float | None:
        """Return the score at the first rung, or at the end of a search without rungs; low ones are better."""
        if search.rungs:
            return self.scores(search)[0]
        if self.why_failed is not None:
            return FAILED
        return None if self.final is None else self.final if search.mode == "min" else -self.final


def read_trial(directory: Path, search: Search, why_failed: str | None = None) -> Trial:
    """Return what the rows of a trial say; why_failed: from the journal, None where it has not failed."""
    split, _, quantity = search.metric.partition("/")
    rows = [row for row in RunFiles(directory).lines(METRICS_FILE, ROW) if _ends_epoch(row, split)]
    values = {row["epoch"]: _number(row.get(quantity)) for row in rows}
    is_complete = read_json(directory / "summary.json").get("status") == "completed"
    last = values[max(values)] if values else None
    if is_complete and last is None:
        last = math.nan
    at_rungs = [values.get(rung, last if is_complete else None) for rung in search.rungs]
    return Trial(at_rungs, is_complete, last, why_failed, max(values, default=0))


def _ends_epoch(row: Record, split: str) -> bool:
    return row["split"] == split and row.get("scope") in (None, "epoch")


def _number(value: object) -> float:
    """Return a metric as it is written: null stands for NaN and infinity."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
