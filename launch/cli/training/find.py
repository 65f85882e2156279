"""The commands that try settings out: `launch find-lr` and `launch find-batch`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launch.cli.command_line.arguments import (
    WholeNumber,
    call,
    checked_config,
    code_words,
    configs,
    own_code,
    parse_processes,
)
from trainlib.errors import UserError

if TYPE_CHECKING:
    from trainlib.config import Config

PROCESSES = click.option(
    "--processes", default="auto", callback=parse_processes, metavar="N|auto", help="Ranks here; auto: one per GPU."
)


@click.command("find-lr")
@configs
@own_code
@PROCESSES
@click.option("--steps", type=WholeNumber(min=20), default=100, show_default=True, help="How many values to try.")
@click.option("--lowest", type=click.FloatRange(0, min_open=True), default=1e-7, show_default=True, help="The first.")
@click.option("--highest", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, help="The last.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.csv",
    help="Where the curve goes, with FILE.png beside it.  [default: NAME-lr.csv, here]",
)
def find_lr(
    arguments: tuple[str, ...],
    code: tuple[str, ...],
    processes: int | None,
    steps: int,
    lowest: float,
    highest: float,
    output: Path | None,
) -> int:
    """Find a learning rate by a range test (Smith, 2017).

    One step with each of --steps learning rates, which grow by the same factor from --lowest to --highest, until the
    smoothed loss is four times its minimum. Printed is the one at which the loss falls fastest, as the override to
    type. Any number of processes gives the same curve. No run is made or touched. Exit code 1: the loss never fell.
    """
    if not 0 < lowest < highest < math.inf:
        raise UserError(f"--lowest, --highest: got {lowest:g} and {highest:g}, must rise, both above 0 and finite")
    config = _checked(arguments, code)
    output = Path(f"{config.name}-lr.csv") if output is None else output
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output: {output.parent} is no folder; make it, or choose another place")
    if output.suffix.lower() != ".csv":
        raise UserError(f"--output: got {output}, must end in .csv")
    options = {"--steps": steps, "--lowest": lowest, "--highest": highest, "--output": output}
    words = [*arguments, *code_words(code), *(str(word) for option in options.items() for word in option)]
    return _run("trainlib.training.programs.find.find_lr", words, processes, config)


@click.command("find-batch")
@configs
@own_code
@PROCESSES
@click.option(
    "--most",
    type=WholeNumber(min=1),
    metavar="N",
    help="Images to try.  [default: all of the training set; on CPUs a process's share of train.batch_size]",
)
def find_batch(arguments: tuple[str, ...], code: tuple[str, ...], processes: int | None, most: int | None) -> int:
    """Find the largest micro-batch that fits into memory.

    Sizes are doubled until one does not fit into the memory of some process's device, then the limit is found to an
    eighth. Each is told with images per second of a forward and backward pass in all processes; nothing is trained. A
    CPU's memory is not filled to the brim. No run is made or touched.
    """
    config = _checked(arguments, code)
    if config.model.sync_batchnorm:
        raise UserError(
            "model.sync_batchnorm: is true, and needs a process's whole share of a batch at once, so that there is no "
            "micro-batch to find: set it to false here, or try values of train.batch_size"
        )
    words = [*arguments, *code_words(code), *(["--most", str(most)] if most else [])]
    return _run("trainlib.training.programs.find.find_batch", words, processes, config)


def _checked(arguments: Sequence[str], code: Sequence[str]) -> Config:
    """Return the configuration, before torch is imported: mistakes are told at once."""
    from launch.local.start.command import config_arguments

    return checked_config(config_arguments(arguments, None), code)


def _run(module: str, words: Sequence[str], processes: int | None, config: Config) -> int:
    from launch.local.ranks.program import run_program
    from launch.local.start.command import command_here
    from launch.local.start.devices import choose_processes, gpus_for

    gpus = gpus_for(config.train.device)
    number = choose_processes(processes, gpus)
    command = command_here(list(words), number, gpus, module=module)
    if number == 1:  # in this interpreter, which need not import torch again
        return call(module, words, command.variables(os.environ))
    return run_program(command)
