"""The commands `launch run` and `launch check`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import click

from launch.cli.command_line.arguments import (
    ResumableCommand,
    WholeNumber,
    call,
    checked_config,
    code_words,
    configs,
    own_code,
    parse_nodes,
    parse_processes,
    refuse_fresh_resume,
)
from launch.cli.command_line.start_page import tell_loading, tell_next
from launch.local.restarts.restart_policy import MOST_RESTARTS
from launch.local.start.command import (
    TRAINING_MODULE,
    Command,
    Node,
    command_here,
    config_arguments,
    left_by_another_launch,
    training_arguments,
)
from trainlib.errors import EXIT_OK, EXIT_USER_ERROR, UserError
from trainlib.runs.files.scratch import remove_abandoned
from trainlib.runs.machine import launch_variables
from trainlib.runs.terminal.streams import keep_running_without_readers

if TYPE_CHECKING:
    from launch.local.outcome.ending import Ending
    from launch.local.restarts.healing import Start
    from trainlib.config import Config


@click.command(cls=ResumableCommand)
@configs
@own_code
@click.option(
    "--processes",
    default="auto",
    callback=parse_processes,
    metavar="N|auto",
    help="Ranks on this machine; auto: one for each GPU.",
)
@click.option(
    "--nodes",
    default="1",
    callback=parse_nodes,
    metavar="N|MIN:MAX",
    help="Machines, each given the same command; MIN:MAX: they may come and go.",
)
@click.option("--node-rank", type=WholeNumber(min=0), help="Which of them this one is, from 0 on.")
@click.option("--head", metavar="HOST[:PORT]", help="An address of machine 0, and a port there that is free.")
@click.option("--name", help="The run's name, and its directory runs/NAME; the same as name=NAME.")
@click.option("--fresh", is_flag=True, help="Begin again; an earlier run of this name is kept aside.")
@click.option(
    "--resume",
    metavar="[CHECKPOINT]",
    help="Go on from the newest checkpoint, or from this one, even if the config changed where that is harmless.",
)
@click.option(
    "--restarts",
    type=WholeNumber(min=0),
    metavar="N",
    help="Starts again by itself after a fault of the machine, so often without a new step; 3, with --nodes 0.",
)
@click.option("--dry-run", is_flag=True, help="Only print the command that would run.")
def run(
    arguments: tuple[str, ...],
    code: tuple[str, ...],
    processes: int | None,
    nodes: tuple[int, int | None],
    node_rank: int | None,
    head: str | None,
    name: str | None,
    fresh: bool,
    resume: str | None,
    restarts: int | None,
    dry_run: bool,
) -> int:
    """Train here: on the CPU, one GPU or all GPUs.

    CONFIG is a file or the name of a shipped config, like quickstart; several are merged from left to right, then
    key=value. Exit code 0: done, 2: a mistake in what was asked, 75: stopped with a checkpoint, run again to continue.

    A rank that is killed, hangs or loses its device does not end the run, which goes on from its newest checkpoint.
    """
    from launch.local.ranks.one_process import can_fork
    from launch.local.start.devices import choose_processes, gpus_for, require_given_gpus

    keep_running_without_readers()
    _check_environment()
    refuse_fresh_resume(fresh, resume)
    config_words = config_arguments(arguments, name)
    training = training_arguments(config_words, fresh=fresh, resume=resume, code=code)
    config = checked_config(config_words, code)  # before torch is imported: mistakes are told at once
    gpus = gpus_for(config.train.device)
    if not dry_run:
        tell_loading()
        require_given_gpus(gpus, config.train.device, os.environ)
    number = choose_processes(processes, gpus)
    least, most_nodes = nodes
    node = _node(nodes, node_rank, head, restarts, may_be_unknown=dry_run)
    command = command_here(training, number, gpus, node=node)
    if dry_run:
        click.echo(command.shell_text())
        return 0
    remove_abandoned()
    if number > 1 and not node_rank:
        _restore_from_mirror(config, fresh=fresh)
    asked = {"fresh": fresh, "resume": resume, "code": code}
    most = MOST_RESTARTS if restarts is None else restarts
    if most_nodes is not None:
        rules = least, most_nodes, most
        return _tell_next(_run_on_nodes(config, config_words, number, gpus, asked, rules), config.name)
    may_fork = click.get_current_context().obj and can_fork()
    if node is None and most and (number > 1 or may_fork):
        return _tell_next(_run_healing(config, config_words, number, gpus, asked, most), config.name)
    if least * number == 1:
        # In this interpreter: a second one would spend seconds on importing torch again.
        return _tell_next(call(TRAINING_MODULE, training, command.variables(os.environ), config), config.name)
    return _tell_next(_run_once(config, command, node), config.name)


def _restore_from_mirror(config: Config, *, fresh: bool) -> None:
    """Bring the run back, where its directory is lost, before any of several ranks looks at it."""
    from trainlib.runs import RUNS
    from trainlib.runs.attempt.logs import logging_to_console
    from trainlib.runs.mirror.process import restore_from_mirror

    with logging_to_console():
        restore_from_mirror(config.mirror, RUNS / config.name, fresh=fresh)


def _tell_next(code: int, name: str) -> int:
    """Say what can be done with a run that is complete; return the exit code."""
    if code == EXIT_OK:
        tell_next(f"launch report {name}", f"launch predict {name} PICTURE", f"launch export {name} --format onnx")
    return code


def _run_once(config: Config, command: Command, node: Node | None) -> int:
    """Run the ranks of this machine, once; return the exit code."""
    from launch.local.ranks.supervise import run_ranks
    from trainlib.runs import RUNS
    from trainlib.runs.attempt.secret import forget_unused, make_secret

    directory = RUNS / config.name
    is_new = node is not None and node.rank == 0 and make_secret(directory)
    exit_code = run_ranks(command, directory, node.rank if node is not None else 0, config.train.hang_seconds)
    forget_unused(directory, is_refused=is_new and exit_code == EXIT_USER_ERROR)
    return exit_code


def _run_healing(
    config: Config, words: Sequence[str], number: int, gpus: int, asked: Mapping[str, Any], most: int
) -> int:
    """Train on this machine, again and again where the machine fails; return the exit code.

    words    the configs and overrides
    number   of processes
    asked    the options of the first start, for `training_arguments`
    most     of restarts without a new step
    """
    from launch.local.ranks.one_process import supervise_one
    from launch.local.ranks.supervise import supervise
    from launch.local.restarts.healing import run_healing
    from launch.local.start.devices import processes_left
    from launch.local.stop_request import StopRequest
    from trainlib.runs import RUNS
    from trainlib.runs.machine.gpus import count_gpus, gpus_without

    directory, hang_seconds = RUNS / config.name, config.train.hang_seconds
    stop = StopRequest(directory)
    is_elastic = config.train.reproducibility == "elastic"

    def start_once(start: Start) -> Ending:
        training = training_arguments(words, **asked)
        if start.has_begun:  # as the options said, and only to be continued, whatever was done to the files meanwhile
            training = training_arguments([str(directory / "config.yaml")], fresh=False, resume=None)
        count, variables = number - len(start.left_out), dict(start.variables)
        if gpus and start.is_restart:
            visible = gpus_without(start.left_out) if start.left_out else []
            count = processes_left(number, len(visible) or count_gpus(), is_elastic=is_elastic)
            variables |= {"CUDA_VISIBLE_DEVICES": ",".join(visible)} if visible else {}
        command = command_here(training, count, gpus)
        if count > 1:
            return supervise(
                command, directory, stop, hang_seconds=hang_seconds, variables=variables, on_poll=start.on_poll
            )
        variables = {**command.variables(os.environ), **variables}

        def train(more: dict[str, str]) -> int:
            if start.is_restart:  # by a new interpreter: the code may have changed since this one imported parts of it
                os.execvpe(command.words[0], command.words, {**variables, **more})
            return call(TRAINING_MODULE, training, {**variables, **more}, config)

        return supervise_one(train, directory, stop, hang_seconds)

    if number > 1:
        click.echo(f"starting {number} processes ...", err=True)
    with stop.catching_signals():
        return run_healing(
            start_once, directory, stop, most, may_leave_out=lambda devices: is_elastic and devices < number
        )


@click.command()
@configs
@own_code
def check(arguments: tuple[str, ...], code: tuple[str, ...]) -> int:
    """Validate a config, and print it with all its defaults.

    Everything is built once, without memory and without data, so that what does not fit together is told now.
    """
    words = [*arguments, *code_words(code)]
    exit_code = call("trainlib.training.programs.check", words, config=checked_config(arguments, code))
    if exit_code == EXIT_OK:
        tell_next(shlex.join(["launch", "run", *words]))
    return exit_code


def _check_environment() -> None:
    """Tell which of Accelerate's variables are left out; raise UserError for a wrong value of one that is used."""
    without = left_by_another_launch(os.environ)
    if foreign := launch_variables.of_accelerate(os.environ):
        click.echo(f"note: not used, as the configuration decides: {', '.join(foreign)}", err=True)
    launch_variables.check({name: value for name, value in os.environ.items() if name not in without})


def _run_on_nodes(
    config: Config, words: Sequence[str], number: int, gpus: int, asked: Mapping[str, Any], rules: tuple[int, int, int]
) -> int:
    """Train with machines that come and go; return the exit code. Arguments are those of `run_on_nodes`."""
    from launch.local.nodes.launch import run_on_nodes
    from launch.local.nodes.membership import Rules

    return run_on_nodes(config, words, number, gpus, asked, Rules(*rules))


def _node(
    least_and_most: tuple[int, int | None],
    node_rank: int | None,
    head: str | None,
    restarts: int | None,
    *,
    may_be_unknown: bool,
) -> Node | None:
    """Return this machine's place among several, None where there is only this one, or where they come and go.

    may_be_unknown  a head that cannot be reached from here is no error, as nothing will be started
    """
    from launch.local.start.network import interface_to, own_interfaces, parse_head

    nodes, most = least_and_most
    if most is not None:
        if node_rank is not None or head is not None:
            raise UserError(f"--node-rank and --head: not with --nodes {nodes}:{most}, whose machines find each other")
        return None
    if nodes == 1:
        if node_rank or head is not None:
            raise UserError("--node-rank and --head: only with --nodes, the number of machines")
        return None
    if node_rank is None or head is None:
        raise UserError(f"--nodes {nodes}: each machine also needs --node-rank and --head, the address of machine 0")
    if restarts:
        raise UserError(
            f"--restarts: got {restarts} with --nodes {nodes}, must be 0: start it again on all machines, or give a "
            f"range, --nodes 1:{nodes}, in elastic mode"
        )
    if node_rank >= nodes:
        raise UserError(f"--node-rank: got {node_rank}, must be below --nodes, {nodes}")
    host, port = parse_head(head)
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    with suppress(UserError) if may_be_unknown else nullcontext():
        interface = interface or interface_to(host, own_interfaces())
    return Node(nodes, node_rank, (host, port), interface, os.environ.get("TRAINLAUNCH_RENDEZVOUS_ID"))
