"""Arguments and actions that several commands share."""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launch.cli.command_line.completion import complete_config
from launch.cli.command_line.start_page import tell_loading
from trainlib.errors import UserError

if TYPE_CHECKING:
    from trainlib.config import Config


class WholeNumber(click.IntRange):
    """The type of an option that takes a whole number from `min` on."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; refuse anything else with the value and the rule."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"got {value}, must be a whole number from {self.min} on", param, ctx)


class ResumableCommand(click.Command):
    """A command whose --resume takes a value only where one follows."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the words as click does, after a --resume without a value is marked as such."""
        if "--resume" in args:
            from trainlib.config import mark_bare_resume

            args = mark_bare_resume(args)
        return super().parse_args(ctx, args)


def refuse_fresh_resume(fresh: bool, resume: str | None) -> None:
    """Raise UserError where both options are given."""
    if fresh and resume is not None:
        raise UserError("--fresh and --resume: one starts over, the other goes on; give one of them")


def configs(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the arguments CONFIG... [key=value ...]."""
    metavar = "CONFIG... [key=value ...]"
    return click.argument("arguments", nargs=-1, required=True, metavar=metavar, shell_complete=complete_config)(
        command
    )


def own_code(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the option --code, which may be repeated."""
    help_text = "Code of your own, whose models, losses and other parts the config names; repeatable."
    return click.option("--code", multiple=True, metavar="FILE.py|MODULE", help=help_text)(command)


def code_words(code: Sequence[str]) -> list[str]:
    """Return the values of --code as arguments for a program."""
    return [word for one in code for word in ("--code", one)]


def checked_config(words: Sequence[str], code: Sequence[str]) -> Config:
    """Return the configuration that the words give; code is read, and not imported, which is left to who uses it."""
    from trainlib.config import load_config
    from trainlib.runs.own_code.sources import read_named

    _refuse_runs(words)
    return load_config(words, code=read_named(code).digests or None)


def _refuse_runs(words: Sequence[str]) -> None:
    """Raise UserError for the name or the folder of a run in the place of a configuration."""
    from trainlib.config import shipped_configs
    from trainlib.runs import RUNS

    for word in words:
        file = (Path(word) if os.path.isdir(word) else RUNS / word) / "config.yaml"
        if "=" not in word and not os.path.isfile(word) and word not in shipped_configs() and file.is_file():
            raise UserError(
                f"{word} is a run, and goes on with its own configuration: launch run {shlex.quote(str(file))}"
            )


def parse_processes(context: click.Context, option: click.Parameter, value: str) -> int | None:
    """Return the value of --processes, None for `auto`."""
    if value == "auto":
        return None
    if not value.isdecimal() or int(value) < 1:
        raise click.BadParameter(f"got {value}, must be auto or a whole number from 1 on")
    return int(value)


def parse_nodes(context: click.Context, option: click.Parameter, value: str) -> tuple[int, int | None]:
    """Return the number of machines, or the fewest and the most of `MIN:MAX`."""
    least, colon, most = value.partition(":")
    if not (least.isdecimal() and int(least) >= 1 and (not colon or (most.isdecimal() and int(most) >= int(least)))):
        raise click.BadParameter(f"got {value}, must be a whole number from 1 on, or MIN:MAX, like 2:4")
    return int(least), int(most) if colon else None


def call(
    program: str,
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    config: Config | None = None,
) -> int:
    """Run a program of trainlib in this interpreter and return its exit code.

    It is named, not imported: what trains imports torch, and the launcher does not.

    environment   all variables that the program is to see, in place of this process's own
    config        the configuration that the arguments name, for a program that takes one: it is not read again
    """
    given = {} if config is None else {"config": config}
    if sys.stderr.isatty():  # what reads a pipe waits for what the program says; `launch run` tells logs, too
        tell_loading()
    with _environment(environment) if environment is not None else nullcontext():
        code: int = importlib.import_module(program).main(list(arguments), **given)
    return code


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Replace all environment variables of this process inside the block, and restore them after it."""
    before = dict(os.environ)
    try:
        os.environ.clear()
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
