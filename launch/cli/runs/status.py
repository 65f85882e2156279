"""The commands that look at runs and steer them: `list`, `status`, `logs`, `stop` and `cancel`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from launch.cli.command_line.arguments import WholeNumber
from launch.cli.command_line.completion import complete_run
from trainlib.runs.terminal.colour import coloured

if TYPE_CHECKING:
    from launch.slurm.queue import JobState
    from trainlib.runs.attempt.status import Run


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_runs(as_json: bool) -> int:
    """List the runs in runs/, newest last."""
    from launch.runs.as_json import run_facts
    from launch.runs.show import runs_table
    from trainlib.runs import RUNS
    from trainlib.runs.attempt.status import all_runs
    from trainlib.runs.files.json_records import to_json
    from trainlib.runs.terminal.tables import show

    runs, now = all_runs(), datetime.now(UTC)
    jobs = _known_jobs(runs)
    if as_json:
        for run in runs:
            click.echo(to_json(run_facts(run, now, jobs)))
        return 0
    table = runs_table(runs, now, jobs)
    show(table if runs else f"no runs in {RUNS.resolve()}")
    return 0


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with all attempts and jobs.")
def status(run: str, as_json: bool) -> int:
    """Show how far a run is: RUN is its name or its directory."""
    from launch.runs.as_json import whole_run_facts
    from launch.runs.show import run_details
    from trainlib.runs.attempt.status import find_run, read_run
    from trainlib.runs.files.json_records import to_json
    from trainlib.runs.terminal.tables import terminal

    found = read_run(find_run(run))
    if as_json:
        click.echo(to_json(whole_run_facts(found, datetime.now(UTC), _known_jobs([found])), indent=2))
        return 0
    console = terminal()
    width = console.width if console else None
    click.echo(_with_colours(run_details(found, datetime.now(UTC), _known_jobs([found]), width=width)))
    return 0


def _with_colours(text: str) -> str:
    """Return what is told of a run, its state and those of its attempts in colour on a terminal that has it."""
    from trainlib.runs.terminal.tables import STATUS_STYLES

    def colour(found: re.Match[str]) -> str:
        return found[1] + coloured(found[2], STATUS_STYLES.get(found[2], ""), sys.stdout)

    return re.sub(r"(?m)^(status: +|  \d+  \S+ \S+  )(\w+)", colour, text)


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends, in a later job too.")
@click.option("--rank", type=WholeNumber(min=0), default=0, show_default=True, help="Whose log.")
@click.option("--attempt", type=WholeNumber(min=1), help="Only what this start of the run printed.")
@click.option("-n", "--lines", type=WholeNumber(min=0), metavar="N", help="Only the last N lines; -f goes on there.")
def logs(run: str, follow: bool, rank: int, attempt: int | None, lines: int | None) -> int:
    """Show what a rank of a run has printed."""
    from launch.runs.control import log_chunks
    from trainlib.runs.attempt.status import find_run
    from trainlib.runs.terminal.printable import printable

    for chunk in log_chunks(find_run(run), rank, follow=follow, attempt=attempt, lines=lines):
        click.echo(printable(chunk, keep="\n\r\t"), nl=False)  # a log may hold what steers a terminal
    return 0


@click.command()
@click.argument("run", shell_complete=complete_run)
def stop(run: str) -> int:
    """Ask a run to write a checkpoint at its next step, and end."""
    from launch.runs.control import ask_to_stop
    from trainlib.runs.attempt.status import find_run

    click.echo(ask_to_stop(find_run(run)))
    return 0


@click.command()
@click.argument("run", shell_complete=complete_run)
def cancel(run: str) -> int:
    """End a run now, or take its job out of the queue.

    Started again, it continues from its last checkpoint.
    """
    from launch.runs.control import end_run
    from trainlib.runs.attempt.status import find_run

    click.echo(end_run(find_run(run)))
    return 0


def _known_jobs(runs: Sequence[Run]) -> dict[str, JobState] | None:
    """Return the runs' jobs that the queue knows, by job id; None, with a note, where SLURM does not answer."""
    from launch.slurm.follow import known_jobs
    from launch.slurm.queue import QueueError

    try:
        return known_jobs([run.jobs for run in runs])
    except QueueError as error:
        click.echo(f"note: {' '.join(str(error).split())}; what follows is from the runs' files alone", err=True)
        return None
