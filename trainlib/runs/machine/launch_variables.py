"""Environment variables that a run reads: a rank's place among the others, this software's own, and Accelerate's.

A value that is none is a mistake of the user's, told with the variable's name. Empty stands for not set.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from trainlib.errors import UserError
from trainlib.runs.attempt.stop_request import mark_of
from trainlib.runs.records.jobs import slurm_job

START_LOGS = "TRAINLAUNCH_START_LOGS"  # a temporary folder of the launcher's
EARLIER_STOP_FILE = "TRAINLAUNCH_EARLIER_STOP"  # the mark of the STOP file that was there when the launcher began
NUM_THREADS = "TRAINLAUNCH_NUM_THREADS"  # intra-op threads of each rank, where the choice made here does not suit
NODE_SECONDS = "TRAINLAUNCH_NODE_SECONDS"  # that the machines of a run wait for each other before it starts
WORLD_SIZE_ASKED = "TRAINLAUNCH_WORLD_SIZE"  # set by the launcher: any other world size is an error
STOP_AT = "TRAINLAUNCH_STOP_AT"  # 3ep or 500st: end there with a checkpoint, as if asked to; set by `launch sweep`
END_TIME = "TRAINLAUNCH_END_TIME"  # set by slurm/train.sbatch, empty where it is not known
USE_CPU = "ACCELERATE_USE_CPU"  # Accelerate's own: train on the CPU even if there are GPUs

DEFAULT_NODE_SECONDS = 300.0
_MOST_THREADS = 1024
_TRUE, _FALSE = ("1", "true", "yes", "on", "y", "t"), ("0", "false", "no", "off", "n", "f")  # as Accelerate reads them

# Accelerate's variables that ask for another kind of training than plain data parallelism.
_OTHER_TRAINING = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
    "ACCELERATE_USE_SAGEMAKER",
    "ACCELERATE_IN_TPU_POD",
)
# Values that `accelerate launch` sets unasked, which say what is so anyway.
_PLAIN_VALUES = {
    "ACCELERATE_MIXED_PRECISION": {"no", ""},
    "ACCELERATE_DYNAMO_BACKEND": {"no", ""},
    "ACCELERATE_DYNAMO_MODE": {"default", ""},
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": {"1", ""},
    "ACCELERATE_CPU_AFFINITY": {*_FALSE, ""},
}
_KEPT = (USE_CPU, "ACCELERATE_LOG_LEVEL")


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """Return this process's rank among all ranks of the run; 0 where nothing launched it."""
    return whole_number("RANK", environ, 0, least=0)


def world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks of the run, on all machines; 1 where nothing launched this process."""
    return whole_number("WORLD_SIZE", environ, 1)


def local_world_size(environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of ranks on this machine; 1 where nothing launched this process."""
    return whole_number("LOCAL_WORLD_SIZE", environ, 1)


def job_end_time(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return when the time of this SLURM job is over, in unix seconds; None outside a job, or where it has no end."""
    return _seconds(END_TIME, environ) if environ.get(END_TIME) else None


def node_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """Return how many seconds the machines of a run wait for each other before it starts."""
    return _seconds(NODE_SECONDS, environ) if environ.get(NODE_SECONDS) else DEFAULT_NODE_SECONDS


def num_threads(environ: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of threads that the user wants for each rank; None where nothing is said."""
    return whole_number(NUM_THREADS, environ, 0, most=_MOST_THREADS) or None


def stop_at(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the duration after which this start is to end with a checkpoint, like 3ep; None for the run's own end."""
    text = environ.get(STOP_AT, "").strip()
    if text and not re.fullmatch(r"[1-9][0-9]{0,9}(ep|st)", text):
        raise UserError(
            f"{STOP_AT}: got {environ[STOP_AT]!r}, must be like 3ep or 500st: correct the variable, or unset it"
        )
    return text or None


def uses_cpu(environ: Mapping[str, str] = os.environ) -> bool:
    """Return True if the user wants to train on the CPU even if there are GPUs."""
    value = environ.get(USE_CPU, "").strip().lower()
    if value and value not in _TRUE + _FALSE:
        raise UserError(
            f"{USE_CPU}: got {environ[USE_CPU]!r}, must be true or false: correct the variable, or unset it"
        )
    return value in _TRUE


def log_before_start(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file that takes what this rank prints until the attempt begins.

    None for rank 0, which prints to the console, and without a launcher. What is refused until then must not change the
    logs in the run directory.
    """
    folder, number = environ.get(START_LOGS), rank(environ)
    return Path(folder) / f"rank-{number}.log" if folder and number else None


def start_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the launcher's temporary folder, which the ranks of this start on this machine share; None without one."""
    folder = environ.get(START_LOGS)
    return Path(folder) if folder and Path(folder).is_dir() else None


def earlier_stop_file(directory: Path, environ: Mapping[str, str] = os.environ) -> str:
    """Return the mark of the STOP file that was in the run directory before this start; see `mark_of`.

    Empty in a SLURM job: there, what a person asked between two starts of the job holds for the next one.
    """
    if slurm_job(environ):
        return ""
    return environ.get(EARLIER_STOP_FILE) or mark_of(directory / "STOP")


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Raise UserError for the first of these variables that has a wrong value, or asks for another training."""
    rank(environ), world_size(environ), local_world_size(environ), whole_number(WORLD_SIZE_ASKED, environ, 1)
    num_threads(environ), node_seconds(environ), job_end_time(environ), uses_cpu(environ), stop_at(environ)
    refuse_other_training(environ)


def of_accelerate(environ: Mapping[str, str]) -> list[str]:
    """Return the names of Accelerate's variables that no run here is to see, sorted: the configuration says it all."""
    return sorted(name for name in environ if name.startswith("ACCELERATE_") and name not in _KEPT)


def refuse_other_training(environ: Mapping[str, str]) -> None:
    """Raise UserError where Accelerate's variables ask for DeepSpeed, FSDP or the like."""
    for name in _OTHER_TRAINING:
        if environ.get(name, "").strip().lower() not in ("", *_FALSE):
            raise UserError(
                f"{name}={environ[name]}: this trains with plain data parallelism; unset the variable, start "
                "`accelerate launch` without that option, or use `launch run`, which leaves such variables out"
            )


def not_obeyed(environ: Mapping[str, str]) -> list[str]:
    """Return `NAME=VALUE` for each of Accelerate's variables that would change a training if it were obeyed."""
    return [
        f"{name}={environ[name]}"
        for name in of_accelerate(environ)
        if (name in _PLAIN_VALUES and environ[name].strip().lower() not in _PLAIN_VALUES[name])
        or name == "ACCELERATE_TORCH_DEVICE"
    ]


def whole_number(
    name: str, environ: Mapping[str, str], default: int, *, least: int = 1, most: int | None = None
) -> int:
    """Return a variable's whole number. Raises UserError for another text, or a number outside of the limits."""
    text = environ.get(name, "").strip()
    if not text:
        return default
    if text.isascii() and text.isdecimal() and least <= int(text[:20]) and (most is None or int(text[:20]) <= most):
        return int(text)
    limits = f"from {least} on" if most is None else f"from {least} to {most}"
    raise UserError(
        f"{name}: got {environ[name]!r}, must be a whole number {limits}: correct the variable, or unset it"
    )


def _seconds(name: str, environ: Mapping[str, str]) -> float:
    try:
        value = float(environ[name])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(
            f"{name}: got {environ[name]!r}, must be a number of seconds above 0: correct the variable, or unset it"
        )
    return value
