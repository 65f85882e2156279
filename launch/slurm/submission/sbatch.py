"""Makes the call of sbatch that submits a run, by pure functions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.local.start.command import Command, left_by_another_launch
from launch.slurm.options import FLAG, OMITTED, Options, minutes_of
from launch.slurm.submission.sites import Site
from trainlib.config import SlurmConfig
from trainlib.errors import UserError

# Options that say the same as one of ours, which sbatch would take beside it: ours is then left out.
_INSTEAD = {
    "no-requeue": "requeue",
    "gres": "gpus-per-node",
    "gpus": "gpus-per-node",
    "gpus-per-task": "gpus-per-node",
    "gpus-per-socket": "gpus-per-node",
    "cpus-per-task": "cpus-per-gpu",
    "cpus-per-gpu": "cpus-per-task",
    "mem-per-cpu": "mem",
    "mem-per-gpu": "mem",
}
_OF_A_JOB = re.compile(r"(SLURM|PMIX?)_.*")
_OF_AN_ALLOCATION = re.compile(r"SBATCH_.*")
_KEPT = {"SLURM_CONF"}


@dataclass(frozen=True)
class Job:
    """A job to submit.

    name       its name in the queue
    directory  the run's or the sweep's: logs go to its logs/, and its code/ holds the code
    arguments  the arguments of the batch script
    array      `0-7%2`: elements and throttle; None for a single job
    """

    name: str
    directory: Path
    arguments: tuple[str, ...]
    array: str | None = None


def sbatch_command(
    job: Job,
    slurm: SlurmConfig,
    site: Site,
    *,
    options: Options,
    python: str,
    debug: bool = False,
    inherited: Mapping[str, str],
) -> Command:
    """Return the call of sbatch, with the environment variables that it and the job need beyond the caller's.

    options    those of --sbatch, which win over the configuration's, those over the site's, and those over our own
    inherited  the caller's environment; its variables of another job are kept from this one
    """
    code = (job.directory / "code").absolute()
    variables = {
        "TRAINLAUNCH_PYTHON": python,
        "TRAINLAUNCH_CODE": str(code),
        **({"TRAINLAUNCH_MODULES": " ".join(site.modules)} if site.modules else {}),
        **({"TRAINLAUNCH_SETUP": "\n".join(slurm.setup)} if slurm.setup else {}),
        **({"TRAINLAUNCH_SRUN": site.srun} if site.srun else {}),
        **({"TRAINLAUNCH_DEBUG": "1"} if debug else {}),
        **site.environment,
    }
    chosen = _overridden(_own_options(job, slurm), site.options)
    chosen = _overridden(_overridden(chosen, _named_options(slurm)), options)
    _check_times(chosen)
    words = [f"--{key}" if value == FLAG else f"--{key}={value}" for key, value in chosen.items() if value is not None]
    script = job.directory / "code" / "slurm" / "train.sbatch"
    return Command(("sbatch", *words, str(script), *job.arguments), variables, of_another_job(inherited))


def _own_options(job: Job, slurm: SlurmConfig) -> Options:
    log = "slurm-%A_%a.out" if job.array else "slurm-%j.out"
    return {
        "parsable": FLAG,
        "job-name": job.name,
        "nodes": str(slurm.nodes),  # without a number of tasks, which of a range would give the fewest
        "gpus-per-node": str(slurm.gpus_per_node) if slurm.gpus_per_node else OMITTED,
        "time": slurm.time,
        "partition": slurm.partition,
        "array": job.array,
        "signal": f"B:USR2@{slurm.signal_seconds}",
        "requeue": FLAG,
        "no-kill": FLAG if isinstance(slurm.nodes, str) else OMITTED,  # a range goes on without a node that is lost
        "open-mode": "append",  # a requeued job goes on in its log
        "output": str(job.directory / "logs" / log),
        "export": "ALL",  # whatever SBATCH_EXPORT says: the job's settings come through the environment
    }


def _named_options(slurm: SlurmConfig) -> Options:
    """Return the options that keys of the configuration give, where they are given."""
    given = {
        "cpus-per-gpu": str(slurm.cpus_per_gpu) if slurm.cpus_per_gpu else None,
        "mem": slurm.mem,
        "account": slurm.account,
        "qos": slurm.qos,
        "mail-user": slurm.mail,
        "mail-type": "END,FAIL" if slurm.mail else None,
    }
    return {key: value for key, value in given.items() if value is not None}


def _overridden(options: Options, by: Options) -> Options:
    gone = {_INSTEAD[key] for key, value in by.items() if key in _INSTEAD and value is not OMITTED}
    if "gpu" not in (by.get("gres") or "gpu"):
        gone -= {"gpus-per-node"}
    return {key: value for key, value in options.items() if key not in gone} | dict(by)


def _check_times(options: Options) -> None:
    """Raise UserError for a time limit that SLURM does not take, or that is shorter than the warning of its end."""
    minutes = minutes_of(options.get("time") or "UNLIMITED")
    seconds = (options.get("signal") or "").rpartition("@")[2]
    if minutes is not None and seconds.isdecimal() and minutes * 60 <= int(seconds):
        raise UserError(
            f"slurm.time: got {options['time']!r}, must be longer than slurm.signal_seconds, {seconds}: the job would "
            "be asked to stop as soon as it starts"
        )


def of_another_job(environment: Mapping[str, str]) -> list[str]:
    """Return the names of variables that another job, or another launch, in which this is called has set.

    SBATCH_* outside a job are a person's own defaults and stay; inside a job they are that job's.
    """
    inside = "SLURM_JOB_ID" in environment
    names = {name for name in environment if _OF_A_JOB.fullmatch(name)}
    names |= {name for name in environment if inside and _OF_AN_ALLOCATION.fullmatch(name)}
    return sorted((names | set(left_by_another_launch(environment))) - _KEPT)


def call_text(command: Command) -> str:
    """Return the call as text that a POSIX shell runs, one option a line."""
    unset = [f"-u {name}" for name in command.without]
    assignments = [f"{name}={shlex.quote(value)}" for name, value in command.environment.items()]
    return " \\\n    ".join([*(["env", *unset] if unset else []), *assignments, *map(shlex.quote, command.words)])
