"""The command `launch verify`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from launch.cli.command_line.arguments import WholeNumber, code_words, own_code
from launch.cli.command_line.completion import complete_run
from trainlib.errors import EXIT_USER_ERROR, UserError


def _parse_sizes(context: click.Context, option: click.Parameter, value: str) -> list[int]:
    sizes = value.split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes) or len(set(sizes)) < 2:
        raise click.BadParameter(f"got {value}, must be two or more different numbers, like 1,2,4")
    return [int(size) for size in sizes]


@click.command()
@click.argument("run", shell_complete=complete_run)
@own_code
@click.option("--steps", type=WholeNumber(min=1), default=10, show_default=True, help="How many steps to repeat.")
@click.option(
    "--processes", default="1,2", show_default=True, callback=_parse_sizes, help="Numbers of ranks to compare."
)
@click.option("--checkpoint", metavar="NAME", help="Where to begin.  [default: the newest with so many steps to go]")
@click.option("--whole", is_flag=True, help="Train the whole run again instead, as it was, and compare the results.")
def verify(
    run: str, code: tuple[str, ...], steps: int, processes: list[int], checkpoint: str | None, whole: bool
) -> int:
    """Repeat steps with other numbers of processes; compare bits.

    RUN is a run's name or directory; it is only read. Compared are the gradient of every parameter, every weight and
    every reported number of each step; the first that differs is named. Exit code 0: all the same, 1: a difference.

    With --whole, the run is trained again from its own config, code and data, with as many processes, in a temporary
    place: told is whether all bits agree, else by how much each figure differs, and what of software, hardware and data
    is other than it was.
    """
    from launch.local.ranks.program import run_program
    from launch.local.start.command import command_here
    from launch.local.start.devices import choose_processes, gpus_for
    from launch.runs.verify import difference, read_records
    from trainlib.config import read_resolved
    from trainlib.runs.attempt.status import find_run
    from trainlib.runs.records.checkpoints import name_of

    directory = find_run(run)
    if not (directory / "config.yaml").is_file():
        raise UserError(f"{directory}: has no config.yaml, so nothing was trained there yet: start it with launch run")
    if whole:
        return _verify_whole(directory, code)
    gpus = gpus_for(read_resolved(directory / "config.yaml").train.device)
    for number in processes:
        choose_processes(number, gpus)
    with tempfile.TemporaryDirectory(prefix="launch-verify-") as folder:
        options, records = [*code_words(code), "--steps", str(steps)], {}
        for number in processes:
            named = ["--checkpoint", checkpoint] if checkpoint is not None else []
            words = [str(directory), folder, *options, *named]
            run_program(command_here(words, number, gpus, module="trainlib.training.programs.verify"))
            records[number] = read_records(Path(folder), number)
            _tell_what_is_other(records[number][0])
            if checkpoint is None and (begun := next((line.get("from_step") for line in records[number][0]), None)):
                checkpoint = name_of(begun)  # of all: a run that is training may have a newer one by now
            click.echo(_summary(number, records[number][0]))
    found = difference(records)
    click.echo(f"different: {found}" if found else "the same in every bit of every step")
    return 1 if found else 0


def _verify_whole(directory: Path, code: Sequence[str]) -> int:
    """Train a run again, tell whether it is the same; return the exit code."""
    from launch.runs.whole import compare, text_of, trained_again

    context = click.get_current_context()
    given = [name for name in ("steps", "processes", "checkpoint") if _is_given(context, name)]
    if given:
        raise UserError(f"--whole: repeats the run as it was, and takes no --{given[0]}: leave one of them out")
    with trained_again(directory, code) as again:
        found = compare(directory, again)
    click.echo(text_of(found, directory))
    return 1 if found.differences else 0


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _tell_what_is_other(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print on stderr how this machine and software are not those of the run; raise UserError for what was refused."""
    for line in lines:
        if line.get("exit_code") == EXIT_USER_ERROR:
            raise UserError(str(line["error"]))
        if line.get("changed"):
            click.echo(f"not as in the run, which may have had other bits: {'; '.join(line['changed'])}", err=True)


def _summary(processes: int, lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a line about the steps that rank 0 made and the weights that it ended with."""
    plural = "" if processes == 1 else "es"
    steps = [line for line in lines if "step" in line]
    if not steps:
        return f"{processes} process{plural}: no step was made"
    digest = str(steps[-1].get("weights_sha256", ""))[:16]
    return f"{processes} process{plural}: steps {steps[0]['step']} to {steps[-1]['step']}, weights {digest} in the end"
