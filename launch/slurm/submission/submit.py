"""Submits a job: checks what SLURM would refuse, calls sbatch, and undoes everything where that fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.local.start.command import Command
from launch.slurm import queue
from launch.slurm.options import long_options, minutes_of
from launch.slurm.queue import Partition, QueueError
from trainlib.config import SlurmConfig
from trainlib.config.checking.suggest import nearest
from trainlib.errors import TrainlaunchError, UserError
from trainlib.runs.records import jobs
from trainlib.runs.records.jobs import job_lines, open_jobs

_SECONDS = 120  # sbatch tries again by itself while the controller is busy


class SubmissionError(TrainlaunchError):
    """sbatch refused the job or could not be started; `exit_code` is its own."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def known_options() -> list[str]:
    """Return the long options of this machine's sbatch; none where there is no sbatch, or it has no configuration."""
    try:
        done = subprocess.run(["sbatch", "--help"], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return long_options(done.stdout)


def require_sbatch() -> None:
    """Raise UserError where this machine has no sbatch."""
    if shutil.which("sbatch") is None:
        raise UserError(
            "no sbatch on this machine: SLURM's commands are not installed, or not on PATH. Submit on a login node of "
            "the cluster; launch run trains here, and --dry-run shows what would be submitted"
        )


def check_limits(slurm: SlurmConfig, known: Sequence[Partition], options: Mapping[str, str | None]) -> None:
    """Raise UserError for a job that SLURM would refuse, or keep in its queue for ever.

    options  those of the command line and the site, whose partition, time and nodes win over `slurm`'s; with a QOS,
             which may lift a partition's limits, these are not checked
    """
    partitions = {partition.name: partition for partition in known}
    wanted = options.get("partition", slurm.partition)
    names = wanted.split(",") if wanted else [name for name, partition in partitions.items() if partition.default]
    for name in names:
        if name not in partitions:
            guess = nearest(name, partitions)
            raise UserError(
                f"slurm.partition: got {name!r}, must be one of {', '.join(sorted(partitions))}"
                + (f"; did you mean {guess}?" if guess else "")
            )
    if slurm.qos or "qos" in options or not names:
        return
    time = options.get("time", slurm.time)
    minutes = minutes_of(time) if time else None
    longest = max((partitions[name].minutes or float("inf") for name in names), default=float("inf"))
    if time and longest < (minutes or float("inf")):
        raise UserError(
            f"slurm.time: got {time}, must be at most {longest:g} minutes, the limit of {_named(names)}: the run "
            "goes on in another job after each end, so a shorter time will do"
        )
    largest = max(partitions[name].nodes for name in names)
    if "nodes" not in options and slurm.most_nodes > largest:
        raise UserError(f"slurm.nodes: got {slurm.nodes}, must be at most {largest}, the nodes of {_named(names)}")
    gpus = max(partitions[name].gpus for name in names)
    if slurm.gpus_per_node > gpus and not {"gres", "gpus", "gpus-per-node", "gpus-per-task"} & options.keys():
        raise UserError(
            f"slurm.gpus_per_node: got {slurm.gpus_per_node}, must be at most {gpus}, the GPUs of a node of "
            f"{_named(names)}; 0 trains on the CPUs"
        )


def _named(names: list[str]) -> str:
    return f"partition{'s' * (len(names) > 1)} {', '.join(names)}"


def refuse_queued(directory: Path) -> None:
    """Raise UserError where a job of this run waits or runs already, and QueueError where SLURM cannot tell."""
    for job in queue.job_states(open_jobs(job_lines(directory))).values():
        if job.active:
            raise UserError(
                f"{directory.name} is in the queue already: job {job.job_id} is {job.state.lower()}; wait for it, "
                f"end it with launch cancel {directory.name}, or choose another name with --name"
            )


def call_sbatch(command: Command) -> str:
    """Submit a job and return its id. Raises SubmissionError with sbatch's own message."""
    try:
        done = subprocess.run(
            command.words,
            env=command.variables(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except OSError as error:
        raise SubmissionError(f"sbatch could not be started: {error}", 2) from error
    except subprocess.TimeoutExpired as error:
        raise QueueError(f"sbatch got no answer in {_SECONDS} s; squeue shows whether the job is there") from error
    if done.returncode != 0:
        said = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines())
        raise SubmissionError(f"sbatch refused the job: {said or 'without a word'}", done.returncode)
    sys.stderr.write(done.stderr)  # what it warns of
    return done.stdout.strip().partition(";")[0]  # behind it the cluster, where there are several


def record_submission(directory: Path, job_id: str, command: Command, array_task: int | None = None) -> None:
    """Write into a run's jobs.jsonl that it is in the queue; where that fails, cancel the job."""
    record = {"event": "submitted", "job_id": job_id, "array_task": array_task, "command": list(command.words)}
    try:
        jobs.append(directory, record)
    except OSError:
        queue.cancel(job_id)
        raise
