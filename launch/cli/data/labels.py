"""The command `launch labels`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from launch.cli.command_line.arguments import call
from trainlib.errors import EXIT_OK, UserError


@click.command()
@click.argument("file", metavar="SWEEP.yaml")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.csv",
    help="Where the table goes, with FILE.html beside it.  [default: SWEEP-labels.csv, here]",
)
def labels(file: str, output: Path | None) -> int:
    """Find labels that are probably wrong, from the folds of a sweep.

    SWEEP.yaml is a sweep with folds whose runs are complete: each sample is judged by a model that was not trained on
    it, by confident learning (the package cleanlab). The table has path, label, suggested and quality, the most
    doubtful first, and can be read as data.table; the page shows the pictures.
    """
    from datetime import UTC, datetime

    from launch.cli.sweeps.out_of_fold import collect
    from launch.report.labels_page import labels_page
    from launch.report.page import write_page
    from launch.sweep.file.grid import read_sweep
    from launch.sweep.repeated.label_errors import as_numbers, doubtful_labels, write_table
    from launch.sweep.repeated.predictions import pooled
    from launch.sweep.repeated.table import repeats_of
    from launch.sweep.results import require_same_values
    from trainlib.runs import RUNS

    sweep = read_sweep(Path(file))
    require_same_values(sweep)
    output = Path(f"{sweep.name}-labels.csv") if output is None else output
    if output.suffix.lower() != ".csv" or not output.absolute().parent.is_dir():
        raise UserError(f"--output: got {output}, must be a file in a folder that there is, and end in .csv")
    best = repeats_of(sweep)[0]
    if not best.are_folds or "data.fold" not in sweep.repeated:
        raise UserError(f"{file}: has no folds, from which each label is judged: add `folds: 5`, without seeds")
    if len(best.complete) < len(best.elements):
        done = f"{len(best.complete)} of the {len(best.elements)} folds of {best.label} are complete"
        raise UserError(f"{file}: {done}: train them all with launch sweep {file}")
    collect(sweep)
    found = pooled(best.predictions())
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "predictions.json", Path(folder) / "doubtful.json"
        given.write_text(json.dumps(as_numbers(found)))
        words = [str(RUNS / best.elements[0].name), str(given), str(answer)]
        if (code := call("trainlib.inference.label_errors", words)) != EXIT_OK:
            return code
        doubtful = doubtful_labels(found, json.loads(answer.read_text())["doubtful"])
    write_table(output, doubtful, found.kind)
    page = output.with_suffix(".html")
    write_page(page, labels_page(sweep.name, len(found.samples), doubtful, datetime.now(UTC)))
    click.echo(f"{len(doubtful)} of {len(found.samples)} labels are doubtful: {output}, with pictures {page}")
    return EXIT_OK
