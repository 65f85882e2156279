"""The command `launch submit`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launch.cli.command_line.arguments import (
    ResumableCommand,
    WholeNumber,
    call,
    checked_config,
    configs,
    own_code,
    refuse_fresh_resume,
)
from launch.local.start.command import Command, config_arguments, training_arguments
from trainlib.errors import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from trainlib.config import Config


@click.command(cls=ResumableCommand)
@configs
@own_code
@click.option("--nodes", metavar="N|MIN:MAX", help="How many nodes; the same as slurm.nodes=N. MIN-MAX is the same.")
@click.option("--gpus-per-node", type=WholeNumber(min=0), help="GPUs of each node; 0 trains on the CPUs.")
@click.option("--time", metavar="TIME", help="Time limit of the job, like 4:00:00; the run goes on in the next one.")
@click.option("--partition", help="Where to queue; the same as slurm.partition=NAME.")
@click.option("--sbatch", "options", multiple=True, metavar="KEY=VALUE", help="Anything else that sbatch takes.")
@click.option("--site", metavar="NAME|FILE", envvar="TRAINLAUNCH_SITE", help="A preset of what this cluster wants.")
@click.option("--name", help="The run's name, and its directory runs/NAME; the same as name=NAME.")
@click.option("--fresh", is_flag=True, help="Begin again; an earlier run of this name is kept aside.")
@click.option("--resume", metavar="[CHECKPOINT]", help="As for launch run.")
@click.option("--debug", is_flag=True, help="Have the job say more: of the script, NCCL and torch.distributed.")
@click.option("--wait", is_flag=True, help="Follow the job to its end, and end with its exit code.")
@click.option("--dry-run", is_flag=True, help="Only print the call of sbatch and the batch script.")
def submit(
    arguments: tuple[str, ...],
    code: tuple[str, ...],
    nodes: str | None,
    gpus_per_node: int | None,
    time: str | None,
    partition: str | None,
    options: tuple[str, ...],
    site: str | None,
    name: str | None,
    fresh: bool,
    resume: str | None,
    debug: bool,
    wait: bool,
    dry_run: bool,
) -> int:
    """Train on a SLURM cluster; print the job's id.

    Everything is checked before the job is queued. The job continues by itself after a preemption or its time
    limit. What goes into it is copied to runs/NAME now: later changes of the config or the code do not reach it.
    """
    from launch.slurm import options as sbatch_options
    from launch.slurm import queue
    from launch.slurm.submission import sbatch, sites
    from launch.slurm.submission import submit as submission
    from trainlib.runs import RUNS

    refuse_fresh_resume(fresh, resume)
    number = int(nodes) if nodes and nodes.isdecimal() else nodes
    flags = {"nodes": number, "gpus_per_node": gpus_per_node, "time": time, "partition": partition}
    words = config_arguments([*arguments, *_overrides(flags)], name)
    known = submission.known_options()
    extra, preset = sbatch_options.parse_options(options, known), sites.load_site(site, known)
    config = checked_config(words, code)
    if of_site := sites.overrides(preset, config.slurm):
        words += of_site
        config = checked_config(words, code)
    directory = RUNS / config.name
    job = sbatch.Job(config.name, directory, (str(directory / "config.yaml"),))
    command = sbatch.sbatch_command(
        job, config.slurm, preset, options=extra, python=sys.executable, debug=debug, inherited=os.environ
    )
    if dry_run:
        script = sites.shipped_files() / "train.sbatch"
        click.echo(f"{sbatch.call_text(command)}\n\n# {script}\n{script.read_text()}", nl=False)
        return 0
    try:
        submission.require_sbatch()
        submission.check_limits(config.slurm, queue.partitions(), {**preset.options, **extra})
        submission.refuse_queued(directory)
    except queue.QueueError as error:
        raise queue.QueueError(f"{error}; nothing was queued: try again when SLURM answers") from error
    job_id = _queue(directory, training_arguments(words, fresh=fresh, resume=resume, code=code), config, command)
    click.echo(
        f"{config.name} is job {job_id}; launch status {config.name} tells how far it is, launch logs -f {config.name} "
        "what it prints",
        err=True,
    )
    click.echo(job_id)
    return _wait(job_id, directory) if wait else 0


@click.command("slurm-script")
def slurm_script() -> int:
    """Print the path of the batch script, for sbatch by hand or to be copied and changed."""
    from launch.slurm.submission.sites import shipped_files

    click.echo(shipped_files() / "train.sbatch")
    return 0


def _overrides(flags: Mapping[str, object]) -> list[str]:
    return [f"slurm.{key}={json.dumps(value)}" for key, value in flags.items() if value is not None]


def _queue(directory: Path, training: Sequence[str], config: Config, command: Command) -> str:
    """Prepare the run directory, submit, and return the job's id. Where any of it fails, all of it is undone."""
    from launch.slurm.submission.snapshot import take_snapshot
    from launch.slurm.submission.submit import call_sbatch, record_submission
    from launch.slurm.submission.undo import undone_on_failure

    with undone_on_failure(directory):
        prepare(training, config)
        take_snapshot(directory)
        job_id = call_sbatch(command)
        record_submission(directory, job_id, command)
    return job_id


def prepare(arguments: Sequence[str], config: Config) -> None:
    """Make the run directory, or prepare to continue the run in it; end the command where that is refused."""
    with redirect_stdout(sys.stderr):
        exit_code = call("trainlib.training.programs.prepare", arguments, config=config)
    if exit_code:
        raise click.exceptions.Exit(exit_code)


def _wait(job_id: str, directory: Path) -> int:
    from launch.slurm.follow import wait_for

    try:
        return wait_for(job_id, directory, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        name = directory.name
        click.echo(f"\njob {job_id} stays in the queue: launch status {name}, launch cancel {name}", err=True)
        return EXIT_INTERRUPTED
