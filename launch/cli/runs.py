"""Commands that look at runs and steer them."""

from __future__ import annotations

from datetime import UTC, datetime

import click


@click.command("list")
def list_runs() -> int:
    """The runs in runs/, newest last."""
    from launch.runs import RUNS, all_runs
    from launch.show import runs_table

    runs = all_runs()
    click.echo(runs_table(runs, datetime.now(UTC)) if runs else f"no runs in {RUNS.resolve()}")
    return 0


@click.command()
@click.argument("run")
def status(run: str) -> int:
    """How far a run is: RUN is its name or its directory."""
    from launch.runs import find_run, read_run
    from launch.show import run_details

    click.echo(run_details(read_run(find_run(run)), datetime.now(UTC)))
    return 0


@click.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True, help="Whose log.")
def logs(run: str, follow: bool, rank: int) -> int:
    """What a rank of a run has printed."""
    from launch.control import log_chunks
    from launch.runs import find_run

    for chunk in log_chunks(find_run(run), rank, follow=follow):
        click.echo(chunk, nl=False)
    return 0


@click.command()
@click.argument("run")
def stop(run: str) -> int:
    """Ask a run to write a checkpoint at its next step, and end."""
    from launch.control import ask_to_stop
    from launch.runs import find_run

    click.echo(ask_to_stop(find_run(run)))
    return 0


@click.command()
@click.argument("run")
def cancel(run: str) -> int:
    """End a run on this machine now; it continues from its last checkpoint when it is started again."""
    from launch.control import kill_run
    from launch.runs import find_run

    click.echo(kill_run(find_run(run)))
    return 0
