"""Runs that repeat a configuration: each complete one answers its own test samples, once; what they say together."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from launch.cli.command_line.arguments import call
from trainlib.errors import EXIT_OK, TrainlaunchError

if TYPE_CHECKING:
    from pathlib import Path

    from launch.sweep.file.grid import Sweep


def collect(sweep: Sweep) -> None:
    """Have every complete run of a sweep predict its test split, where it has not yet, and pool those of folds.

    A file of pooled predictions is written for each configuration whose folds are all complete. It takes as long as an
    evaluation of each run, the first time.

    Raises TrainlaunchError where an evaluation fails.
    """
    from launch.sweep.file.names import element_names
    from launch.sweep.repeated.predictions import FILE, write_pooled
    from launch.sweep.repeated.table import repeats_of
    from trainlib.runs import RUNS

    repeats = repeats_of(sweep)
    names = element_names("out-of-fold", [one.values for one in repeats])
    for name, one in zip(names, repeats, strict=True):
        for element in one.complete:
            _predict(RUNS / element.name, RUNS / element.name / FILE)
        parts = one.predictions()
        if one.are_folds and len(parts) == len(one.elements):
            file = RUNS / sweep.name / f"{name}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_pooled(file, parts)
            click.echo(f"out-of-fold predictions: {file}", err=True)


def show_repeats(sweep: Sweep) -> None:
    """Print what the runs of each configuration say together, as far as they are complete."""
    from launch.sweep.repeated.table import repeats_of, repeats_table
    from trainlib.runs.terminal.tables import show

    if (repeats := repeats_table(repeats_of(sweep))).num_rows:
        show("", repeats)


def repeated_facts(sweep: Sweep) -> list[dict[str, Any]]:
    """Return the same, one mapping for each configuration."""
    from launch.sweep.repeated.table import repeats_facts, repeats_of

    return repeats_facts(repeats_of(sweep))


def _predict(run: Path, file: Path) -> None:
    """Write the predictions of a run, unless there are those of its end."""
    if file.is_file() and _are_of_its_end(file, run / "summary.json"):
        return
    click.echo(f"{run.name}: predicting its test samples", err=True)
    said = io.StringIO()
    with redirect_stdout(said):
        code = call("trainlib.inference.evaluate", [str(run), "--split", "test", "--predictions", str(file)])
    if code != EXIT_OK:
        raise TrainlaunchError(f"{run.name}: its predictions could not be made: launch eval {run.name} tells why")


def _are_of_its_end(file: Path, summary: Path) -> bool:
    """Return True if predictions are newer than a run's end, and say the same: clocks go back, and files are cut."""
    from launch.sweep.repeated.predictions import read_predictions
    from trainlib.runs.files.json_records import read_json

    if file.stat().st_mtime < summary.stat().st_mtime:
        return False
    found, test = read_predictions(file), read_json(summary).get("test") or {}
    count = len(found.samples)
    right = sum(found.is_right)
    if set(found.labels) <= set(found.classes):  # not sets of labels, whose accuracy is another one
        right = round(test.get("accuracy", right / count) * count)
    return (test.get("count", count), right) == (count, sum(found.is_right))
