"""Number of processes to start here, from the number of GPUs."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from trainlib.errors import TrainlaunchError, UserError
from trainlib.runs.machine.gpus import VISIBLE, count_gpus
from trainlib.runs.machine.launch_variables import uses_cpu


def choose_processes(requested: int | None, gpus: int) -> int:
    """Return the number of processes to start on a machine with `gpus` GPUs.

    requested   the user's number; None for one process for each GPU, or one on a machine without GPUs

    Raises UserError for more processes than GPUs; a machine without GPUs runs any number.
    """
    if requested is None:
        return max(gpus, 1)
    if gpus and requested > gpus:
        raise UserError(
            f"--processes: got {requested}, must be at most {gpus}, the GPUs that are visible here; "
            "to train on the CPU instead, set train.device=cpu, or ACCELERATE_USE_CPU=true for other commands"
        )
    return requested


def gpus_for(device: str) -> int:
    """Return the number of GPUs here that a training on `train.device` may use."""
    return count_gpus() if device in ("auto", "cuda") else 0


def processes_left(before: int, gpus: int, *, is_elastic: bool) -> int:
    """Return the number of processes to go on with, of `before`, after a fault on a machine with GPUs.

    gpus         that still answer
    is_elastic   the result does not depend on the number of processes

    Raises TrainlaunchError where too few are left.
    """
    if gpus >= before:
        return before
    if is_elastic and gpus:
        return gpus
    advice = "train.reproducibility: elastic goes on with fewer" if gpus else "look at `nvidia-smi` and `dmesg`"
    raise TrainlaunchError(
        f"{gpus} GPUs on {socket.gethostname()} still answer, and {before} processes are to train on them: not started "
        f"again; {advice}"
    )


def require_given_gpus(gpus: int, device: str, environment: Mapping[str, str]) -> None:
    """Raise TrainlaunchError if SLURM gave this node GPUs and none is visible, rather than train on the CPU.

    device   train.device
    """
    given = environment.get("SLURM_GPUS_ON_NODE", "")
    on_cpu = device == "cpu" or uses_cpu(environment) or any(environment.get(name) == "" for name in VISIBLE)
    if given.isdecimal() and int(given) and not gpus and not on_cpu:
        raise TrainlaunchError(
            f"SLURM gave this job {given} GPUs on {socket.gethostname()}, but none can be found there, by nvidia-smi "
            "or in /dev: have the driver looked at, or train on the CPU with slurm.gpus_per_node=0"
        )
