"""The environment variables by which a launcher tells a process which of a run's ranks it is."""

from __future__ import annotations

import os
from collections.abc import Mapping


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """Return this process's rank among all ranks of the run; 0 where nothing launched it."""
    return int(environ.get("RANK", "0"))


def world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks of the run, on all machines; 1 where nothing launched this process."""
    return int(environ.get("WORLD_SIZE", "1"))


def local_world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks on this machine; 1 where nothing launched this process."""
    return int(environ.get("LOCAL_WORLD_SIZE", "1"))


def job_end_time(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return when the time of this SLURM job is over, in unix seconds; None outside a job, or where it has no end."""
    end_time = environ.get("TRAINLAUNCH_END_TIME")  # set by slurm/train.sbatch, empty where it is not known
    return float(end_time) if end_time else None
