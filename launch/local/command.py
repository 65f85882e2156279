"""The command that starts a training, as a pure function of what was asked."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TRAINING_MODULE = "trainlib.train"
ACCELERATE_CONFIG = Path(__file__).with_name("accelerate.yaml")
STOP_SECONDS = 7  # for ranks to write a checkpoint and end, once their agent or its launcher is killed
RESUME_LATEST = ""  # --resume without a checkpoint


# What tells a process of which launch it is a rank: set by torchrun and SLURM scripts, by MPI's launchers, which
# Accelerate listens to as well, and by cluster software that sets torchrun's own options. Left over in a shell, they
# make a process wait for ranks that never come.
_RANK_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|NODE_RANK|ROLE_NAME|MASTER_(ADDR|PORT)"
    r"|(TORCHELASTIC_|PET_|PMI_|OMPI_COMM_WORLD_|MV2_COMM_WORLD_|MPI_LOCAL).*"
)


@dataclass(frozen=True)
class Command:
    """A command line, the environment variables that it needs beyond the caller's, and those that it must not get."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    without: Sequence[str] = ()

    def variables(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """The whole environment to run it in."""
        return {**{name: value for name, value in inherited.items() if name not in self.without}, **self.environment}

    def shell_text(self) -> str:
        """One line that a POSIX shell runs as this command."""
        unset = [word for name in self.without for word in ("-u", name)]
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*(["env", *unset] if unset else []), *assignments, shlex.join(self.words)])


@dataclass(frozen=True)
class Node:
    """This machine's place among the machines of a run.

    rank        from 0, the head, on
    head        (host, port) at which the ranks of all machines meet: an address of machine 0, the same for all
    interface   the network interface through which this machine reaches the head; None leaves the choice to gloo
    run_id      tells the machines of this run from those of another one that come to the same port
    """

    count: int
    rank: int
    head: tuple[str, int]
    interface: str | None = None
    run_id: str | None = None


def left_by_another_launch(environment: Mapping[str, str]) -> list[str]:
    """The variables that make a process a rank of some launch that is not this one."""
    return sorted(name for name in environment if _RANK_VARIABLES.fullmatch(name))


def accelerate_launch(python: str) -> tuple[str, ...]:
    """The words that start `accelerate launch` with this interpreter's packages: its console script if it has one."""
    script = Path(python).parent / "accelerate"
    return (str(script), "launch") if script.is_file() else (python, "-m", "accelerate.commands.launch")


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
    python: str,
    accelerate: Sequence[str],
    without: Sequence[str] = (),
    node: Node | None = None,
    module: str = TRAINING_MODULE,
) -> Command:
    """Start `processes` ranks of the training program on this machine, which may be one of several.

    `python` is the interpreter, `accelerate` are the words that start `accelerate launch`, and `module` is another
    program to start in the same way. On a machine without GPUs, Accelerate starts several ranks only where it is told
    both --multi_gpu and ACCELERATE_USE_CPU.
    """
    world_size = processes * (node.count if node else 1)
    environment = {"TRAINLAUNCH_WORLD_SIZE": str(world_size)}
    if world_size == 1:
        return Command((python, "-m", module, *arguments), environment, without)
    if on_cpu:
        environment = {"ACCELERATE_USE_CPU": "true", **environment}
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(STOP_SECONDS)  # heeded from torch 2.12 on; 30 s before
    if node is not None and node.interface is not None:
        environment["GLOO_SOCKET_IFNAME"] = node.interface
    if node is not None and node.run_id is not None:
        environment["PET_RDZV_ID"] = node.run_id  # torchrun's --rdzv-id, which Accelerate does not have
    options = {
        "--config_file": str(ACCELERATE_CONFIG),
        "--num_processes": str(world_size),
        "--num_machines": str(node.count if node else 1),
        "--machine_rank": str(node.rank if node else 0),
        **({"--main_process_ip": node.head[0]} if node else {}),
        "--gpu_ids": "all",
        "--main_process_port": str(node.head[1] if node else 0),  # 0: a free one, so that two runs here do not meet
        "--mixed_precision": "no",  # the precision is the config's to say
        "--dynamo_backend": "no",
    }
    flags = [word for option in options.items() for word in option]
    return Command((*accelerate, "--multi_gpu", *flags, "-m", module, *arguments), environment, without)


def command_here(
    arguments: Sequence[str], processes: int, gpus: int, *, module: str = TRAINING_MODULE, node: Node | None = None
) -> Command:
    """`training_command` for this interpreter, this environment and a machine with so many GPUs."""
    return training_command(
        arguments,
        processes,
        on_cpu=gpus == 0,
        python=sys.executable,
        accelerate=accelerate_launch(sys.executable),
        without=left_by_another_launch(os.environ),
        node=node,
        module=module,
    )
