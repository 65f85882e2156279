"""Number of processes to start here, from the number of GPUs, which are counted without importing torch."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Mapping

from trainlib.errors import TrainlaunchError, UserError
from trainlib.runs.machine.launch_variables import uses_cpu


def visible_gpus(installed: int, environment: Mapping[str, str]) -> int:
    """Return how many of the `installed` NVIDIA GPUs a program may use that is started with this environment."""
    if uses_cpu(environment):
        return 0
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return installed
    entries = []
    for entry in visible.split(","):
        if entry.strip() in ("", "-1"):  # CUDA ignores everything behind the first invalid entry
            break
        entries.append(entry)
    return min(len(entries), installed)


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
            "to train on the CPU instead, set CUDA_VISIBLE_DEVICES to nothing"
        )
    return requested


def require_given_gpus(gpus: int, environment: Mapping[str, str]) -> None:
    """Raise TrainlaunchError if SLURM gave this node GPUs and none is visible, rather than train on the CPU."""
    given = environment.get("SLURM_GPUS_ON_NODE", "")
    on_cpu = uses_cpu(environment) or environment.get("CUDA_VISIBLE_DEVICES") == ""
    if given.isdecimal() and int(given) and not gpus and not on_cpu:
        raise TrainlaunchError(
            f"SLURM gave this job {given} GPUs on {socket.gethostname()}, but nvidia-smi shows none there: have the "
            "driver looked at, or train on the CPU with slurm.gpus_per_node=0"
        )


def count_gpus() -> int:
    """Return the number of NVIDIA GPUs that a training on this machine may use."""
    return visible_gpus(_installed_gpus(), os.environ)


def _installed_gpus() -> int:
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listing = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    # Below each GPU come the parts that it may be divided into, indented.
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
