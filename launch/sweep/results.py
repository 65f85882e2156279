"""The results of a sweep: its runs side by side, the best one first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launch.sweep.grid import Element, Sweep, short_keys, value_text
from trainlib.config import differences, is_harmless, read_resolved
from trainlib.runs import RUNS
from trainlib.runs.status import Run, read_run
from trainlib.runs.terminal.tables import STATUS_STYLES, Column, Table


def is_finished(element: Element) -> bool:
    """Return True if the element's run is complete, with a configuration that computes the same."""
    directory = RUNS / element.name
    if read_run(directory).summary.get("status") != "completed":
        return False
    changed = [change.key for change in differences(read_resolved(directory / "config.yaml"), element.config)]
    return all(is_harmless(key) and key not in ("train.epochs", "train.steps") for key in changed)


def results_table(sweep: Sweep) -> Table:
    """Return a row for each run: what sets it apart, how far it is, its best validation and test accuracy, its name.

    The best one comes first: by what its configuration calls best, or by the test accuracy where it names nothing.
    """
    runs = {element.name: read_run(RUNS / element.name) for element in sweep.elements}
    ranked = sorted(sweep.elements, key=lambda element: _rank(element, runs[element.name]))
    metrics = {element.config.checkpoint.best.metric for element in ranked if element.config.checkpoint.best}
    columns = [
        _column(title, [value_text(element.values[key]) if key in element.values else "" for element in ranked])
        for key, title in short_keys(sweep.varied).items()
    ]
    columns += [
        Column("STATUS", [runs[element.name].status for element in ranked], styles=STATUS_STYLES),
        _column("STEP", [str(runs[element.name].newest_metrics.get("step", "")) for element in ranked]),
    ]
    if metrics:
        title = metrics.pop() if len(metrics) == 1 else "best"
        columns.append(_column(title, [_number(_best(element, runs[element.name])) for element in ranked]))
    columns += [
        _column("test/accuracy", [_number(_test_accuracy(runs[element.name])) for element in ranked]),
        Column("RUN", [element.name for element in ranked]),
    ]
    return Table(columns)


def results_facts(sweep: Sweep) -> list[dict[str, Any]]:
    """Return for each run what `results_table` shows of it, in the same order; null stands for what is not known."""
    runs = {element.name: read_run(RUNS / element.name) for element in sweep.elements}
    return [
        {
            "name": element.name,
            "values": {key: element.values.get(key) for key in sweep.varied},
            "status": runs[element.name].status,
            "step": runs[element.name].step,
            "metric": element.config.checkpoint.best.metric if element.config.checkpoint.best else None,
            "best": _best(element, runs[element.name]),
            "test_accuracy": _test_accuracy(runs[element.name]),
        }
        for element in sorted(sweep.elements, key=lambda element: _rank(element, runs[element.name]))
    ]


def _rank(element: Element, run: Run) -> tuple[bool, float]:
    """Return the sort key of a run: the best one comes first, and runs without a result come last."""
    best = element.config.checkpoint.best
    value = _test_accuracy(run) if best is None else _best(element, run)
    if value is None:
        return True, 0.0
    return False, value if best is not None and best.mode == "min" else -value


def _best(element: Element, run: Run) -> float | None:
    """Return the best value of the metric that chooses the best checkpoint; the newest value while the run goes on."""
    best = element.config.checkpoint.best
    if best is None:
        return None
    split, _, quantity = best.metric.partition("/")
    newest = run.last.get((split, None)) or run.last.get((split, "epoch")) or {}
    value = (run.summary.get("best") or {}).get("value", newest.get(quantity))
    return value if isinstance(value, int | float) else None


def _test_accuracy(run: Run) -> float | None:
    value = (run.last.get(("test", None)) or run.summary.get("test") or {}).get("accuracy")
    return value if isinstance(value, int | float) else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _column(title: str, cells: Sequence[str]) -> Column:
    """Return a column that is aligned to the right where all its cells are numbers or empty."""
    return Column(title, cells, on_right=all(map(_is_number, cells)))


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True
