"""The `launch` command. Imports that take time are made where they are used, so that help and errors come at once."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from typing import NoReturn

import click

from launch.command import (
    TRAINING_MODULE,
    Node,
    accelerate_launch,
    config_arguments,
    left_by_another_launch,
    training_arguments,
    training_command,
)
from trainlib.errors import EXIT_INTERRUPTED, TrainlaunchError, UserError


def program() -> NoReturn:
    """The `launch` program: run one command and exit with its code."""
    code = main()
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)  # while the interpreter ends, they would change the code
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    try:
        code = cli.main(arguments, prog_name="launch", standalone_mode=False)
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TrainlaunchError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    return code or 0


def _show_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            version = metadata.version("trainlaunch")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        click.echo(f"trainlaunch {version}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="The version.")
def cli() -> None:
    """Train an image classifier from one YAML file, on any hardware, with exact results."""


class _RunCommand(click.Command):
    """`launch run`, whose --resume takes a value only where one follows."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--resume" in args:
            from trainlib.config import mark_bare_resume

            args = mark_bare_resume(args)
        return super().parse_args(ctx, args)


def _parse_processes(context: click.Context, option: click.Parameter, value: str) -> int | None:
    """A number of processes; `auto` is None."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"got {value}, must be auto or a whole number from 1 on")
    return int(value)


def _configs(command: Callable[..., int]) -> Callable[..., int]:
    """The arguments CONFIG... [key=value ...]."""
    return click.argument("arguments", nargs=-1, required=True, metavar="CONFIG... [key=value ...]")(command)


@cli.command(cls=_RunCommand)
@_configs
@click.option(
    "--processes",
    default="auto",
    callback=_parse_processes,
    metavar="N|auto",
    help="Ranks on this machine; auto: one for each GPU.",
)
@click.option("--nodes", type=click.IntRange(min=1), default=1, help="Machines; each is given the same command.")
@click.option("--node-rank", type=click.IntRange(min=0), help="Which of them this one is, from 0 on.")
@click.option("--head", metavar="HOST[:PORT]", help="An address of machine 0, and a port there that is free.")
@click.option("--name", help="The run's name, and its directory runs/NAME; the same as name=NAME.")
@click.option("--fresh", is_flag=True, help="Begin again; an earlier run of this name is kept aside.")
@click.option(
    "--resume",
    metavar="[CHECKPOINT]",
    help="Go on from the newest checkpoint, or from this one, even if the config changed where that is harmless.",
)
@click.option("--dry-run", is_flag=True, help="Only print the command that would run.")
def run(
    arguments: tuple[str, ...],
    processes: int | None,
    nodes: int,
    node_rank: int | None,
    head: str | None,
    name: str | None,
    fresh: bool,
    resume: str | None,
    dry_run: bool,
) -> int:
    """Train here: on the CPU, one GPU or all GPUs.

    CONFIG is a file or the name of a shipped config, like quickstart; several are merged from left to right, then
    key=value. Exit code 0: done, 2: a mistake in what was asked, 75: stopped with a checkpoint, run again to continue.
    """
    from launch.devices import choose_processes, count_gpus

    if fresh and resume is not None:
        raise UserError("--fresh and --resume: one starts over, the other goes on; give one of them")
    configs = config_arguments(arguments, name)
    training = training_arguments(configs, fresh=fresh, resume=resume)
    run_name = _load_run_name(configs)
    gpus = count_gpus()
    number = choose_processes(processes, gpus)
    command = training_command(
        training,
        number,
        on_cpu=gpus == 0,
        python=sys.executable,
        accelerate=accelerate_launch(sys.executable),
        without=left_by_another_launch(os.environ),
        node=_node(nodes, node_rank, head, may_be_unknown=dry_run),
    )
    if dry_run:
        click.echo(command.shell_text())
        return 0
    if nodes * number == 1:
        # In this interpreter: a second one would spend seconds on importing torch again.
        with _environment(command.variables(os.environ)):
            return _call(TRAINING_MODULE, training)
    from launch.runs import RUNS
    from launch.supervise import run_ranks

    return run_ranks(command, RUNS / run_name)


@cli.command()
@_configs
def check(arguments: tuple[str, ...]) -> int:
    """Validate a config, build everything without memory or data, print the resolved config."""
    _load_run_name(arguments)
    return _call("trainlib.check", list(arguments))


@cli.command("list")
def list_runs() -> int:
    """The runs in runs/, newest last."""
    from launch.runs import RUNS, all_runs
    from launch.show import runs_table

    runs = all_runs()
    click.echo(runs_table(runs, datetime.now(UTC)) if runs else f"no runs in {RUNS.resolve()}")
    return 0


@cli.command()
@click.argument("run")
def status(run: str) -> int:
    """How far a run is: RUN is its name or its directory."""
    from launch.runs import find_run, read_run
    from launch.show import run_details

    click.echo(run_details(read_run(find_run(run)), datetime.now(UTC)))
    return 0


@cli.command()
@click.argument("run")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True, help="Whose log.")
def logs(run: str, follow: bool, rank: int) -> int:
    """What a rank of a run has printed."""
    from launch.control import log_chunks
    from launch.runs import find_run

    for chunk in log_chunks(find_run(run), rank, follow=follow):
        click.echo(chunk, nl=False)
    return 0


@cli.command()
@click.argument("run")
def stop(run: str) -> int:
    """Ask a run to write a checkpoint at its next step, and end."""
    from launch.control import ask_to_stop
    from launch.runs import find_run

    click.echo(ask_to_stop(find_run(run)))
    return 0


@cli.command()
@click.argument("run")
def cancel(run: str) -> int:
    """End a run on this machine now; it continues from its last checkpoint when it is started again."""
    from launch.control import kill_run
    from launch.runs import find_run

    click.echo(kill_run(find_run(run)))
    return 0


def _node(nodes: int, node_rank: int | None, head: str | None, *, may_be_unknown: bool) -> Node | None:
    """This machine's place among several; None where there is only this one.

    may_be_unknown  a head that cannot be reached from here is no error, as nothing will be started
    """
    from launch.network import interface_to, own_interfaces, parse_head

    if nodes == 1:
        if node_rank or head is not None:
            raise UserError("--node-rank and --head: only with --nodes, the number of machines")
        return None
    if node_rank is None or head is None:
        raise UserError(f"--nodes {nodes}: each machine also needs --node-rank and --head, the address of machine 0")
    if node_rank >= nodes:
        raise UserError(f"--node-rank: got {node_rank}, must be below --nodes, {nodes}")
    host, port = parse_head(head)
    interface = os.environ.get("GLOO_SOCKET_IFNAME")
    with suppress(UserError) if may_be_unknown else nullcontext():
        interface = interface or interface_to(host, own_interfaces())
    return Node(nodes, node_rank, (host, port), interface)


def _load_run_name(arguments: Sequence[str]) -> str:
    """Validate the configuration, before torch is imported; the run's name."""
    from trainlib.config import load_config

    name: str = load_config(arguments).name
    return name


def _call(program: str, arguments: list[str]) -> int:
    """Run a program of trainlib in this interpreter. Named, not imported: the launcher does not build on trainlib."""
    code: int = importlib.import_module(program).main(arguments)
    return code


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Exactly these environment variables inside, and those from before afterwards."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
