"""The command `launch wandb-sync`."""

from __future__ import annotations

import click

from launch.cli.command_line.arguments import call
from launch.cli.command_line.completion import complete_run
from trainlib.errors import UserError


@click.command("wandb-sync")
@click.argument("run", shell_complete=complete_run)
def wandb_sync(run: str) -> int:
    """Upload to W&B what was tracked offline.

    RUN is its name or its directory. All attempts of a run that was stopped, killed and resumed become one run there,
    each row once. Log in with `wandb login`, or set WANDB_API_KEY.
    """
    from trainlib.runs.attempt.status import find_run, is_running

    directory = find_run(run)
    if is_running(directory):
        raise UserError(f"{directory} is training; wait for its end, or stop it with `launch stop {directory.name}`")
    return call("trainlib.training.hooks.tracking.wandb.sync", [str(directory)])
