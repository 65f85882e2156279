"""The command that starts a training, as a pure function of what was asked."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TRAINING_MODULE = "trainlib.train"
ACCELERATE_CONFIG = Path(__file__).with_name("accelerate.yaml")
RESUME_LATEST = ""  # --resume without a checkpoint


@dataclass(frozen=True)
class Command:
    """A command line and the environment variables that it needs beyond the caller's."""

    words: tuple[str, ...]
    environment: Mapping[str, str]

    def shell_text(self) -> str:
        """One line that a POSIX shell runs as this command."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*assignments, shlex.join(self.words)])


def config_arguments(arguments: Sequence[str], name: str | None) -> list[str]:
    """The configs and overrides as given, then `name` as one more override.

    Values of overrides are YAML, where 2024 and null are not text: the name is given in quotes.
    """
    return [*arguments, *([f"name={json.dumps(name, ensure_ascii=False)}"] if name is not None else [])]


def training_arguments(configs: Sequence[str], *, fresh: bool, resume: str | None) -> list[str]:
    """What the training program gets: the configs and overrides, then what the options say.

    `resume` is None where it was not asked for and RESUME_LATEST where no checkpoint was named. It comes last, so that
    its optional value cannot be taken for anything else.
    """
    result = list(configs)
    if fresh:
        result.append("--fresh")
    if resume is not None:
        result.append("--resume")
        if resume != RESUME_LATEST:
            result.append(resume)
    return result


def training_command(
    arguments: Sequence[str],
    processes: int,
    *,
    on_cpu: bool,
    python: Sequence[str] = ("python",),
    accelerate: Sequence[str] = ("accelerate", "launch"),
) -> Command:
    """Start `processes` ranks of the training program on this machine.

    `python` and `accelerate` are the words that start the two programs. On a machine without GPUs, Accelerate starts
    several ranks only where it is told both --multi_gpu and ACCELERATE_USE_CPU.
    """
    environment = {"TRAINLAUNCH_WORLD_SIZE": str(processes)}
    if processes == 1:
        return Command((*python, "-m", TRAINING_MODULE, *arguments), environment)
    if on_cpu:
        environment = {"ACCELERATE_USE_CPU": "true", **environment}
    options = {
        "--config_file": str(ACCELERATE_CONFIG),
        "--num_processes": str(processes),
        "--num_machines": "1",
        "--machine_rank": "0",
        "--gpu_ids": "all",
        "--main_process_port": "0",  # a free one, so that two runs on one machine do not meet
        "--mixed_precision": "no",  # the precision is the config's to say
        "--dynamo_backend": "no",
    }
    flags = [word for option in options.items() for word in option]
    return Command((*accelerate, "--multi_gpu", *flags, "-m", TRAINING_MODULE, *arguments), environment)
