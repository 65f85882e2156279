"""The command line and environment that start a training, as pure functions of the user's options."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from trainlib.platform.isolation import child_variables
from trainlib.runs.machine.launch_variables import of_accelerate

TRAINING_MODULE = "trainlib.train"
ACCELERATE_CONFIG = Path(__file__).with_name("accelerate.yaml")
STOP_SECONDS = 7  # for ranks to write a checkpoint and end, once their agent or its launcher is killed
# The ranks of one machine need no other interface, and nobody else has business there.
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # of the libraries that ranks talk through
_ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
RESUME_LATEST = ""  # --resume without a checkpoint


# Variables that make a process a rank of some launch: set by torchrun and SLURM scripts, by MPI's launchers, which
# Accelerate reads as well, and by cluster software that sets torchrun's own options. Left over in a shell, they make
# a process wait for ranks that never come.
_RANK_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|NODE_RANK|ROLE_NAME|MASTER_(ADDR|PORT)"
    r"|(TORCHELASTIC_|PET_|PMI_|OMPI_COMM_WORLD_|MV2_COMM_WORLD_|MPI_LOCAL).*"
)


@dataclass(frozen=True)
class Command:
    """A command line with its changes to the caller's environment.

    words         the program and its arguments
    environment   variables to add
    without       names of variables to remove
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]
    without: Sequence[str] = ()

    def variables(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return the whole environment of the command, for a caller that has the environment `inherited`."""
        return {**{name: value for name, value in inherited.items() if name not in self.without}, **self.environment}

    def shell_text(self) -> str:
        """Return one line of text that runs this command in a POSIX shell."""
        unset = [word for name in self.without for word in ("-u", name)]
        assignments = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*(["env", *unset] if unset else []), *assignments, shlex.join(self.words)])


@dataclass(frozen=True)
class Node:
    """This machine's place among the machines of a run.

    count       number of machines
    rank        this machine's number, from 0; machine 0 is the head
    head        (host, port) of the rendezvous: an address of machine 0, the same for all machines
    interface   the network interface through which this machine reaches the head; None leaves the choice to gloo and
                NCCL
    run_id      distinguishes this run from another run whose machines connect to the same port
    """

    count: int
    rank: int
    head: tuple[str, int]
    interface: str | None = None
    run_id: str | None = None


def left_by_another_launch(environment: Mapping[str, str]) -> list[str]:
    """Return the names of the variables that are for some other launch, sorted: a rank's place, options."""
    ranks = {name for name in environment if _RANK_VARIABLES.fullmatch(name)}
    return sorted(ranks | set(of_accelerate(environment)))


def accelerate_launch(python: str) -> tuple[str, ...]:
    """Return the words that start `accelerate launch` with the packages of the interpreter `python`.

    They are the path of its console script if it is installed, else a module for `python -m`.
    """
    script = Path(python).parent / "accelerate"
    return (str(script), "launch") if script.is_file() else (python, "-m", "accelerate.commands.launch")


def config_arguments(arguments: Sequence[str], name: str | None) -> list[str]:
    """Return the configs and overrides as given, then `name=NAME` as one more override.

    Values of overrides are YAML, where 2024 and null are not text, so the name is quoted.
    """
    return [*arguments, *([f"name={json.dumps(name, ensure_ascii=False)}"] if name is not None else [])]


def training_arguments(
    configs: Sequence[str], *, fresh: bool, resume: str | None, code: Sequence[str] = ()
) -> list[str]:
    """Return the arguments of the training program: the configs and overrides, then the options.

    code     the values of --code
    resume   None without --resume, RESUME_LATEST for --resume without a checkpoint, else the checkpoint

    `--resume` comes last, so that its optional value cannot be taken for anything else.
    """
    result = [*configs, *(word for one in code for word in ("--code", one))]
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
    variables: Mapping[str, str] = MappingProxyType({}),
    node: Node | None = None,
    module: str = TRAINING_MODULE,
) -> Command:
    """Return the command that starts `processes` ranks of the training program on this machine.

    arguments    what each rank gets
    python       the interpreter
    accelerate   the words that start `accelerate launch`
    without      names of environment variables that the ranks must not inherit
    variables    further environment variables of the ranks
    node         this machine's place among several; None where there is only this one
    module       the program that each rank runs

    On a machine without GPUs, Accelerate starts several ranks only with both --multi_gpu and ACCELERATE_USE_CPU.
    """
    world_size = processes * (node.count if node else 1)
    environment = {**variables, "TRAINLAUNCH_WORLD_SIZE": str(world_size)}
    if world_size == 1:
        return Command((python, "-m", module, *arguments), environment, without)
    if on_cpu:
        environment = {"ACCELERATE_USE_CPU": "true", **environment}
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(STOP_SECONDS)  # torch reads it from 2.12 on; before, it is 30 s
    if node is not None and node.interface is not None:
        environment |= dict.fromkeys(INTERFACE_VARIABLES, node.interface) | dict(variables)
    if node is not None and node.run_id is not None:
        environment["PET_RDZV_ID"] = node.run_id  # torchrun's --rdzv-id, which Accelerate does not have
    options = {
        "--config_file": str(ACCELERATE_CONFIG),
        "--num_processes": str(world_size),
        "--num_machines": str(node.count if node else 1),
        "--machine_rank": str(node.rank if node else 0),
        **({"--main_process_ip": node.head[0]} if node else {}),
        "--gpu_ids": "all",
        "--main_process_port": str(node.head[1] if node else 0),  # 0: a free one, so that two runs here do not collide
        "--mixed_precision": "no",  # the precision is the config's to say
        "--dynamo_backend": "no",
    }
    flags = [word for option in options.items() for word in option]
    return Command((*accelerate, "--multi_gpu", *flags, "-m", module, *arguments), environment, without)


def command_here(
    arguments: Sequence[str], processes: int, gpus: int, *, module: str = TRAINING_MODULE, node: Node | None = None
) -> Command:
    """Return `training_command` for this interpreter, this environment and a machine with `gpus` GPUs."""
    return training_command(
        arguments,
        processes,
        on_cpu=gpus == 0,
        python=sys.executable,
        accelerate=accelerate_launch(sys.executable),
        without=left_by_another_launch(os.environ),
        variables=child_variables(os.environ)
        | {name: os.environ[name] for name in INTERFACE_VARIABLES if node is not None and os.environ.get(name)}
        | (_ON_LOOPBACK if node is None and processes > 1 else {}),
        node=node,
        module=module,
    )
