"""The results of a sweep: its runs side by side, the best one first."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from launch.sweep.file.grid import Element, Sweep
from launch.sweep.file.names import short_keys, value_text
from launch.sweep.search.halving import FAILED
from launch.sweep.search.importance import importances
from launch.sweep.search.settings import Search
from launch.sweep.search.trials import Trial
from launch.sweep.standing import standing
from launch.sweep.validation import ranked_by, validated
from trainlib.config import Difference, keep_older_values, read_resolved, trained_otherwise
from trainlib.errors import ConfigError, UserError
from trainlib.runs import RUNS
from trainlib.runs.attempt.status import Run, read_run
from trainlib.runs.terminal.tables import STATUS_STYLES, Column, Table


def is_finished(element: Element) -> bool:
    """Return True if the element's run is complete, with a configuration that computes the same."""
    directory = RUNS / element.name
    if read_run(directory).summary.get("status") != "completed":
        return False
    recorded = read_resolved(directory / "config.yaml")
    lengths = [(config.train.epochs, config.train.steps) for config in (recorded, element.config)]
    return lengths[0] == lengths[1] and not _trained_otherwise(element)


def other_values(element: Element) -> list[Difference]:
    """Return what a run that has begun was trained with, and what it would be trained with now; code aside."""
    changed = []
    with suppress(ConfigError):  # a damaged one, which a start tells of
        if (RUNS / element.name / "config.yaml").is_file():
            changed = _trained_otherwise(element)
    return [change for change in changed if not change.key.startswith("code")]


def _trained_otherwise(element: Element) -> list[Difference]:
    file = RUNS / element.name / "config.yaml"
    return trained_otherwise(read_resolved(file), keep_older_values(element.config, file))


def require_same_values(sweep: Sweep) -> None:
    """Raise UserError where a run has other values than the sweep gives to it, as after its file was edited."""
    for element in sweep.elements:
        keys = [f"{key}." for key in element.values]
        for change in other_values(element):
            changed = f"{change.key}."
            if any(changed.startswith(key) or key.startswith(changed) for key in keys):
                raise UserError(
                    f"{element.name} was trained with {change.key} {change.old}, and the sweep has {change.new} for it "
                    "now: was its file edited? Bring the earlier values back, give the sweep another name, or begin "
                    "again with --fresh"
                )


def results_table(sweep: Sweep) -> Table:
    """Return a row for each run: what sets it apart, how far it is, its best validation and test accuracy, its name.

    The best one comes first, by the validation (see `ranked_by`); without a validation split they keep the order of the
    file. In a search, a run that came to a later rung is better, and of those at the same rung the one with the better
    result there.
    """
    seen = _seen(sweep)
    metrics = {metric for one in seen if (metric := one.metric) is not None}
    columns = [
        _column(title, [value_text(one.element.values[key]) if key in one.element.values else "" for one in seen])
        for key, title in short_keys(sweep.varied).items()
    ]
    columns += [
        Column("STATUS", [one.status for one in seen], styles=STATUS_STYLES),
        _column("STEP", [str(one.run.newest_metrics.get("step", "")) for one in seen]),
    ]
    for index, rung in enumerate(sweep.search.rungs if sweep.search else ()):
        columns.append(
            _column(f"at {rung}ep", [_number(one.trial.at_rungs[index]) if one.trial else "" for one in seen])
        )
    if metrics:
        title = metrics.pop() if len(metrics) == 1 else "best"
        columns.append(_column(title, [_number(one.value) for one in seen]))
    columns += [
        _column("test/accuracy", [_number(_test_accuracy(one.run)) for one in seen]),
        Column("RUN", [one.element.name for one in seen]),
    ]
    return Table(columns)


def results_facts(sweep: Sweep) -> list[dict[str, Any]]:
    """Return for each run what `results_table` shows of it, in the same order; null stands for what is not known."""
    rungs = sweep.search.rungs if sweep.search else ()
    return [
        {
            "name": one.element.name,
            "values": {key: one.element.values.get(key) for key in sweep.varied},
            "status": one.status,
            "step": one.run.step,
            "metric": one.metric,
            "best": one.value,
            "test_accuracy": _test_accuracy(one.run),
            **(
                {"rungs": {f"{r}ep": v for r, v in zip(rungs, one.trial.at_rungs, strict=True)}, "command": one.command}
                if one.trial
                else {}
            ),
        }
        for one in _seen(sweep)
    ]


def best_command(sweep: Sweep) -> str | None:
    """Return the command that trains the best trial of a search again; None where it is not known.

    So it is without a result, and where the trial was trained with `key=value` that are not given now.
    """
    best = next(iter(_seen(sweep)), None)
    if best is None or best.trial is None or best.trial.why_failed is not None or best.trial.last is None:
        return None
    return best.command if math.isfinite(best.trial.last) and not other_values(best.element) else None


def key_importances(sweep: Sweep) -> dict[str, float]:
    """Return how much each key that a search varies matters (see `importances`), the most important one first.

    Judged by the first rung, to which all trials come; without rungs, by their ends. Empty where nothing can be said.
    """
    search = sweep.search
    if search is None:
        return {}
    judged = [
        (one.element.values, score)
        for one in _seen(sweep)
        if one.trial is not None and (score := one.trial.first_score(search)) is not None
    ]
    return importances([values for values, _ in judged], [score for _, score in judged])


def importance_text(sweep: Sweep) -> str | None:
    """Return the importance of the keys in a line; None where nothing can be said."""
    found = key_importances(sweep)
    short = short_keys(found)
    return ", ".join(f"{short[key]} {value:.2f}" for key, value in found.items()) or None


@dataclass(frozen=True)
class _Seen:
    """A run of a sweep, as the table shows it. `trial` is None where the sweep is no search."""

    element: Element
    run: Run
    trial: Trial | None
    status: str

    @property
    def value(self) -> float | None:
        return validated(self.element.config, self.run)

    @property
    def metric(self) -> str | None:
        """Return the metric that ranks the run; None where it has none of a validation, and is to have none."""
        config = self.element.config
        return None if config.checkpoint.best is None and self.value is None else ranked_by(config)[0]

    @property
    def command(self) -> str:
        return shlex.join(["launch", "run", *self.element.arguments])


def _seen(sweep: Sweep) -> list[_Seen]:
    """Return the runs, the best one first."""
    runs = [read_run(RUNS / element.name) for element in sweep.elements]
    if sweep.search is None:
        ranked = sorted(zip(sweep.elements, runs, strict=True), key=lambda pair: _rank(*pair))
        return [_Seen(element, run, None, run.status) for element, run in ranked]
    now = standing(sweep)
    found = [
        _Seen(element, run, trial, _status(run, trial, is_out=is_final and target < len(trial.at_rungs)))
        for element, run, trial, target, is_final in zip(
            sweep.elements,
            runs,
            now.trials,
            now.decided.targets[: len(runs)],
            now.decided.final[: len(runs)],
            strict=True,
        )
    ]
    return sorted(found, key=lambda one: _rank_of_trial(one.trial, one.value, sweep.search) if one.trial else ())


def _status(run: Run, trial: Trial, *, is_out: bool) -> str:
    """Return what a search calls the state of a trial: `out` where it was stopped at a rung for good."""
    if trial.why_failed is not None:
        return "failed"
    return "out" if is_out and run.status == "stopped" else run.status


def _rank_of_trial(trial: Trial, value: float | None, search: Search | None) -> tuple[float, ...]:
    """Return the sort key of a trial: how far it came, and how good it was there.

    value   of a complete trial: what `validated` says of it, as of any run
    """
    assert search is not None, "only trials of a search are ranked so"
    scores = [score for score in trial.scores(search) if score is not None and score < FAILED]
    sign = 1.0 if search.mode == "min" else -1.0
    if trial.why_failed is None and trial.final is not None:
        return -math.inf, sign * (trial.final if value is None else value)
    return (-len(scores), scores[-1]) if scores else (1.0, 0.0)


def _rank(element: Element, run: Run) -> tuple[bool, float]:
    """Return the sort key of a run: the best one comes first, and runs without a result come last."""
    value = validated(element.config, run)
    if value is None:
        return True, 0.0
    return False, value if ranked_by(element.config)[1] == "min" else -value


def _test_accuracy(run: Run) -> float | None:
    value = (run.last.get(("test", None)) or run.summary.get("test") or {}).get("accuracy")
    return value if isinstance(value, int | float) else None


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def _column(title: str, cells: Sequence[str]) -> Column:
    """Return a column that is aligned to the right where all its cells are numbers or empty."""
    return Column(title, cells, on_right=all(map(_is_number, cells)))


def _is_number(text: str) -> bool:
    try:
        float(text or 0)
    except ValueError:
        return False
    return True
