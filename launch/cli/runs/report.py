"""The command `launch report`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launch.cli.command_line.completion import complete_run
from launch.cli.command_line.start_page import tell_next
from trainlib.errors import UserError

if TYPE_CHECKING:
    from launch.sweep.file.grid import Sweep


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...|SWEEP.yaml", shell_complete=complete_run)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Where to write the page.")
@click.option("--open", "open_it", is_flag=True, help="Show it in the browser.")
def report(names: tuple[str, ...], output: Path | None, open_it: bool) -> int:
    """Make one HTML page about a run, or several.

    It prints where the page is. The page holds all that it needs, so that it can be sent on, and opens without a
    network. That of one run goes to runs/NAME/report.html, that of several to report.html. A sweep file stands for its
    runs; of one with folds or seeds, the page says what they show together; of a search, how all trials did, which keys
    matter, and the command of the best one.
    """
    from launch.report.facts.run_facts import read_facts
    from launch.report.page import page, write_page
    from launch.sweep.results import require_same_values
    from trainlib.runs.attempt.status import find_run

    sweep, given = _sweep(names), names
    repeats, search = None, None
    if sweep is not None:
        require_same_values(sweep)
        if sweep.repeated:
            from launch.cli.sweeps.out_of_fold import collect
            from launch.sweep.repeated.table import repeats_of, repeats_table

            collect(sweep)
            repeats = repeats_table(repeats_of(sweep))
        names = _begun(sweep)
        if sweep.search:
            from launch.report.views.search_view import view_of_search

            search = view_of_search(sweep)
            names = search.shown
    directories = list(dict.fromkeys(find_run(name) for name in names))
    if output is not None and not output.name:
        raise UserError("--output: got no name, must be a file")
    place = [] if output is None else ["--output", str(output)]
    if output is None:
        output = directories[0] / "report.html" if len(directories) == 1 and not search else Path("report.html")
    write_page(output, page([read_facts(directory) for directory in directories], datetime.now(UTC), repeats, search))
    click.echo(output)
    if open_it:
        import webbrowser

        webbrowser.open(output.resolve().as_uri())
    else:
        tell_next(shlex.join(["launch", "report", *given, *place, "--open"]))
    return 0


def _sweep(names: Sequence[str]) -> Sweep | None:
    """Return the sweep that the words name, a file or a shipped one; None where they name runs."""
    from trainlib.runs import RUNS

    if len(names) != 1 or (RUNS / names[0] / "config.yaml").is_file():
        return None
    from launch.sweep.file.grid import read_sweep, shipped_sweeps

    if not (names[0].endswith((".yaml", ".yml")) or names[0] in shipped_sweeps()):
        return None
    return read_sweep(Path(names[0]))


def _begun(sweep: Sweep) -> tuple[str, ...]:
    """Return the names of the sweep's runs that have begun. Raises UserError where none has."""
    from trainlib.runs import RUNS

    names = tuple(element.name for element in sweep.elements if (RUNS / element.name / "config.yaml").is_file())
    if not names:
        raise UserError(f"{sweep.name}: none of its {len(sweep.elements)} runs has begun: start them with launch sweep")
    return names
