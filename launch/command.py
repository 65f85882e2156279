"""The command that starts a training, as a pure function of what was asked."""

from __future__ import annotations

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


def training_arguments(arguments: Sequence[str], *, name: str | None, fresh: bool, resume: str | None) -> list[str]:
    """What the training program gets: the configs and overrides as given, then what the options say.

    `resume` is None where it was not asked for and RESUME_LATEST where no checkpoint was named. It comes last, so that
    its optional value cannot be taken for anything else.
    """
    result = list(arguments)
    if name is not None:
        result.append(f"name={name}")
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


def mark_bare_resume(words: Sequence[str]) -> list[str]:
    """Write `--resume` as `--resume=` where the word after it is not its checkpoint but a config, override or option.

    A checkpoint is a folder: a path, or the name of one, `step-00000123`. So `--resume train.epochs=30` and
    `--resume quickstart` mean the newest checkpoint.
    """
    result = []
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        bare = word == "--resume" and not _names_checkpoint(following)
        result.append("--resume=" if bare else word)
    return result


def _names_checkpoint(word: str) -> bool:
    if word.startswith("-") or "=" in word or word.endswith((".yaml", ".yml")):
        return False
    return "/" in word or word.startswith("step-")
