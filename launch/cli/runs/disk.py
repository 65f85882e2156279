"""The commands that make room: `launch rm` and `launch prune`."""

from __future__ import annotations

from pathlib import Path

import click

from launch.cli.command_line.arguments import call
from launch.cli.command_line.completion import complete_run


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...", shell_complete=complete_run)
@click.option("--force", is_flag=True, help="Also runs that have checkpoints: nothing brings them back.")
def rm(names: tuple[str, ...], force: bool) -> int:
    """Remove runs.

    A run that is running, or has a job in the queue, is never removed, and one that has checkpoints only with --force.
    If one of several must stay, all do.
    """
    from launch.runs.removal import remove_runs

    directories = _found(names)
    remove_runs(directories, force=force)
    for directory in directories:
        click.echo(f"removed {directory}")
    return 0


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...", shell_complete=complete_run)
@click.option("--keep", multiple=True, type=click.Choice(["best", "last"]), help="What stays.  [default: both]")
@click.option("--weights-only", is_flag=True, help="Of what stays, only the weights: no training goes on from them.")
def prune(names: tuple[str, ...], keep: tuple[str, ...], weights_only: bool) -> int:
    """Remove all checkpoints of runs but the best and the last.

    What stays is verified first. Never of a run that is running or has a job in the queue. The key checkpoint.after
    does the same at the end of a run.
    """
    from launch.runs.removal import require_idle

    directories = _found(names)
    require_idle(directories)
    words = [*(f"--keep={name}" for name in keep), *(["--weights-only"] if weights_only else [])]
    return call("trainlib.training.programs.prune", [*words, "--", *map(str, directories)])


def _found(names: tuple[str, ...]) -> list[Path]:
    from trainlib.runs.attempt.status import find_run

    return list(dict.fromkeys(find_run(name) for name in names))
