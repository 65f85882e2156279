"""What the runs of a sweep with `folds` or `seeds` say together: a row for each configuration and metric."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.sweep.file.grid import Element, Sweep
from launch.sweep.file.names import short_keys, value_text
from launch.sweep.repeated.predictions import FILE, Predictions, figures, pooled, read_predictions
from launch.sweep.repeated.statistics import Spread, spread
from launch.sweep.validation import ranked_by, validated
from trainlib.runs import RUNS
from trainlib.runs.attempt.status import read_run
from trainlib.runs.files.json_records import read_json
from trainlib.runs.records.rows import EVALUATION_NUMBERS
from trainlib.runs.terminal.tables import Column, Table

NUMBERS = ("loss", "accuracy", *EVALUATION_NUMBERS)


@dataclass(frozen=True)
class Repeats:
    """The runs of one configuration, which differ in their fold or seed only.

    values     that the sweep sets for this configuration, by dotted key
    complete   those of the elements that have been trained to their end and tested
    spreads    of each metric of the complete ones, by name
    """

    values: Mapping[str, Any]
    elements: Sequence[Element]
    complete: Sequence[Element]
    spreads: Mapping[str, Spread]

    @property
    def label(self) -> str:
        """Return the values in words; "all runs" where there is one configuration only."""
        short = short_keys(self.values)
        return " ".join(f"{short[key]}={value_text(value)}" for key, value in self.values.items()) or "all runs"

    def predictions(self) -> dict[str, Predictions]:
        """Return the predictions of the runs that have any, by the name of the run."""
        files = {element.name: RUNS / element.name / FILE for element in self.complete}
        return {name: read_predictions(file) for name, file in files.items() if file.is_file()}

    @property
    def are_folds(self) -> bool:
        """True if the runs are the folds of one partition, each of which is there once."""
        folds = [element.config.data.fold for element in self.elements]
        return None not in folds and len(set(folds)) == len(folds)

    def pooled_figures(self) -> dict[str, float]:
        """Return the figures over the out-of-fold predictions of all samples; empty until every fold has them."""
        parts = self.predictions() if self.are_folds else {}
        has_sets = any(element.config.data.has_sets for element in self.elements)
        return figures(pooled(parts)) if len(parts) == len(self.elements) and not has_sets else {}


def repeats_of(sweep: Sweep) -> list[Repeats]:
    """Return the configurations of a sweep with their repeated runs, the best one first, by validation.

    That is the mean of the metric that ranks their runs; without a validation split they stay in the file's order.
    """
    groups: dict[str, list[Element]] = {}
    for element in sweep.elements:
        values = {key: value for key, value in element.values.items() if key not in sweep.repeated}
        groups.setdefault(json.dumps(values, sort_keys=True), []).append(element)
    return sorted((_repeats(sweep, elements) for elements in groups.values()), key=_rank)


def _repeats(sweep: Sweep, elements: Sequence[Element]) -> Repeats:
    found = {element.name: _figures_of(RUNS / element.name, element) for element in elements}
    complete = [element for element in elements if found[element.name]]
    names = dict.fromkeys(name for element in complete for name in found[element.name])
    columns = {name: [found[e.name][name] for e in complete if name in found[e.name]] for name in names}
    spreads = {name: spread(values) for name, values in columns.items() if len(values) == len(complete)}
    values = {key: value for key, value in elements[0].values.items() if key not in sweep.repeated}
    return Repeats(values, elements, complete, spreads)


def _figures_of(run: Path, element: Element) -> dict[str, float]:
    """Return the figures of a complete run, by the names that a configuration has for them; empty for another one."""
    state = read_run(run)
    summary = state.summary
    test = read_json(run / "evaluation-test.json") or summary.get("test") or {}
    if summary.get("status") != "completed" or not test:
        return {}
    found: dict[str, Any] = {ranked_by(element.config)[0]: validated(element.config, state)}
    found |= {f"test/{name}": test.get(name) for name in (*NUMBERS, *(test.get("own_metrics") or ()))}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _rank(repeats: Repeats) -> tuple[bool, float]:
    metric, mode = ranked_by(repeats.elements[0].config)
    found = repeats.spreads.get(metric)
    if found is None:
        return True, 0.0
    return False, found.mean if mode == "min" else -found.mean


def repeats_table(repeats: Sequence[Repeats]) -> Table:
    """Return a row for each configuration and metric: mean, deviation, 95 % interval, and that of all folds pooled."""
    rows = []
    for one in repeats:
        together = one.pooled_figures()
        runs = f"{len(one.complete)}/{len(one.elements)}"
        for name, found in one.spreads.items():
            all_folds = together.get(name.removeprefix("test/")) if name.startswith("test/") else None
            numbers = (found.mean, found.deviation, found.low, found.high, all_folds)
            rows.append([one.label, name, *("" if n is None else f"{n:.4f}" for n in numbers), runs])
    titles = ("CONFIGURATION", "METRIC", "MEAN", "DEVIATION", "95% LOW", "95% HIGH", "OUT OF FOLD", "RUNS")
    return Table([Column(title, [row[at] for row in rows], at > 1) for at, title in enumerate(titles)])


def repeats_facts(repeats: Sequence[Repeats]) -> list[dict[str, Any]]:
    """Return what `repeats_table` shows, one mapping for each configuration, with the names of its runs."""
    return [
        {
            "values": dict(one.values),
            "runs": [element.name for element in one.elements],
            "complete": len(one.complete),
            "metrics": {name: asdict(found) for name, found in one.spreads.items()},
            "out_of_fold": one.pooled_figures(),
        }
        for one in repeats
    ]
