"""A run for people who look at it from Python: its history as a table, and its card in a notebook."""

from __future__ import annotations

import importlib
from typing import Any

from trainlib.runs.attempt.status import find_run, read_run
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import read_lines
from trainlib.runs.notebook import html
from trainlib.runs.records.shapes import ROW


class Run(RunDirectory):
    """A run's directory, as `trainlib.fit` and `trainlib.open_run` return it: `path`, `summary()` and `history()`."""

    @property
    def name(self) -> str:
        """The run's name, which `launch` and `trainlib.load_model` know it by."""
        return self.path.name

    def history(self) -> Any:
        """Return the rows of metrics.jsonl: a pandas.DataFrame where pandas is installed, else a list."""
        rows = read_lines(self.metrics_file, fits=ROW)
        try:
            return importlib.import_module("pandas").DataFrame(rows)
        except ModuleNotFoundError:
            return rows

    def __repr__(self) -> str:
        """Return where the run is and its state, in one line."""
        return f"Run({str(self.path)!r}, {read_run(self.path, whole=False).status})"

    def _repr_html_(self) -> str:
        """Return the card that a notebook shows."""
        run = read_run(self.path)
        newest, best = run.newest_metrics, run.summary.get("best") or {}
        test = run.last.get(("test", None)) or run.summary.get("test") or {}
        numbers = {
            "test accuracy": _number(test.get("accuracy")),
            "test loss": _number(test.get("loss")),
            f"best {best.get('metric', '')}": _number(best.get("value")),
            "step": run.step,
            "epoch": newest.get("epoch"),
            "seconds": _number(run.summary.get("seconds"), 0),
        }
        ways = [f"trainlib.load_model({self.name!r})", "run.history()", f"launch report {self.name}"]
        if run.status in ("stopped", "interrupted", "failed"):
            ways.insert(0, "trainlib.fit(...) again goes on from the last checkpoint")
        return html.block(
            f'<div style="font-size:16px"><b>{html.text(self.name)}</b> {html.badge(run.status)}</div>',
            html.facts(numbers),
            html.curves(read_lines(self.metrics_file, fits=ROW)),
            f'<div style="font-size:12px;{html.SOFT}">{html.text(self.path.absolute())}</div>',
            f'<div style="font-size:12px">{" · ".join(f"<code>{html.text(way)}</code>" for way in ways)}</div>',
        )


def open_run(name: str) -> Run:
    """Return a run by its name, or by its directory, to look at: also one that goes on, was stopped or has failed.

    Raises UserError where there is none.
    """
    return Run(find_run(name))


def _number(value: object, digits: int = 4) -> str | None:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else None
