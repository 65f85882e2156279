"""The `launch` command. Slow imports are made in the functions that need them, so that help and errors come at once."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

import trainlib.runs
from launch.cli import doctor, model, slurm
from launch.cli.command_line.start_page import START_PAGE
from launch.cli.data import cache, data_set, labels, pack
from launch.cli.runs import disk, report, status, tracking, verify
from launch.cli.sweeps import sweep
from launch.cli.training import find, init, run
from trainlib.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, TrainlaunchError, UserError, not_permitted
from trainlib.runs.attempt.stop_request import ignore_stop_signals
from trainlib.runs.terminal.colour import coloured
from trainlib.runs.terminal.printable import encode_anything, print_error
from trainlib.runs.terminal.streams import OutputLostError, flush_streams, leave, secure_streams


def program() -> NoReturn:
    """Run one command and exit with its code: the `launch` program."""
    secure_streams()
    code = main(is_program=True)
    ignore_stop_signals()  # while the interpreter ends, they would change the code
    leave(code, at_once=code == EXIT_INTERRUPTED)  # a thread may be inside a decoder


def main(arguments: Sequence[str] | None = None, *, is_program: bool = False) -> int:
    """Run one command and return its exit code.

    is_program   this process does nothing else, so that `launch run` may fork it
    """
    encode_anything()
    try:
        _refuse_lost_folder()
        arguments = _without_runs(sys.argv[1:] if arguments is None else arguments)
        code = cli.main(arguments, prog_name=_program_name(), standalone_mode=False, obj=is_program)
        flush_streams()
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption):
            error = _with_our_words(error, arguments or ())
        if isinstance(error, click.MissingParameter):
            error = _with_example(error, arguments or ())
        _show(error)
        return error.exit_code
    except OutputLostError as error:
        return error.end()
    except TrainlaunchError as error:
        print_error(error)
        return error.exit_code
    except PermissionError as error:
        print_error(not_permitted(error))
        return EXIT_USER_ERROR
    return code or 0


def _show(error: click.ClickException) -> None:
    """Print what click says of a mistake, with `Error:` in colour on a terminal that has it."""
    text = io.StringIO()
    error.show(text)
    said = re.sub(r"(?m)^Error:", lambda found: coloured(found[0], "red", sys.stderr), text.getvalue())
    click.echo(said, err=True, nl=False)


def _refuse_lost_folder() -> None:
    """Raise UserError where the current folder was removed: the runs, other paths and torch's libraries need it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder does not exist any more: change to another one (cd)") from None


def _without_runs(words: Sequence[str]) -> list[str]:
    """Take `--runs DIR`, from anywhere on the line: the folder of all runs, of this process and those it starts.

    It comes before what reads `RUNS` is imported.
    """
    left, given = list[str](), iter(words)
    for word in given:
        if word == "--":
            left += [word, *given]
        elif word == "--runs" or word.startswith("--runs="):
            folder = word.partition("=")[2] or next(given, "")
            if not folder:
                raise UserError("--runs: needs the folder that holds the run directories")
            os.environ[trainlib.runs.RUNS_VARIABLE] = folder
            trainlib.runs.RUNS = Path(folder)
        else:
            left.append(word)
    return left


def _program_name() -> str:
    """Return the name that this was started by, which messages and completion use."""
    name = os.path.basename(sys.argv[0])
    return name if name == "trainlaunch" else "launch"


def _with_our_words(error: click.NoSuchOption, words: Sequence[str]) -> click.NoSuchOption:
    """Return the error with the words to type in place of another tool's option, if they are known."""
    from launch.cli.command_line.other_words import for_option

    command = error.ctx.command.name if error.ctx else None
    answer = for_option(error.option_name, words, command or "")
    said = f"No such option: {error.option_name}. {answer}"
    return click.NoSuchOption(error.option_name, said, ctx=error.ctx) if answer else error


def _with_example(error: click.MissingParameter, words: Sequence[str]) -> click.MissingParameter:
    """Return the error with what may be given, if that is known."""
    from launch.cli.command_line.other_words import for_missing

    metavar = error.param.metavar if error.param and error.param.metavar else (error.param and error.param.name) or ""
    answer = for_missing(metavar if "." in metavar else metavar.upper(), words)
    return click.MissingParameter(answer, ctx=error.ctx, param=error.param) if answer else error


def _show_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        try:
            version = metadata.version("trainlaunch")
        except metadata.PackageNotFoundError:
            version = "(not installed)"
        click.echo(f"trainlaunch {version}")
        context.exit()


class _InOrder(click.Group):
    """A group that lists its commands in the order in which they were added, which is that of a run's life."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of one that there is not, say what to type."""
        word = args[0]
        if word not in self.commands and not word.startswith("-") and not ctx.resilient_parsing:
            from launch.cli.command_line.other_words import for_command

            answer = for_command(word, args[1:], list(self.commands))
            ctx.fail(f"No such command {word!r}." + (f" Type {answer}" if answer else ""))
        return super().resolve_command(ctx, args)


@click.group(cls=_InOrder, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="The version.")
@click.option(
    "--runs", metavar="DIR", help="Where the runs are; anywhere on the line.  [default: $TRAINLAUNCH_RUNS or runs]"
)
@click.pass_context
def cli(context: click.Context, runs: str | None) -> None:
    """Train an image classifier from one YAML file, on any hardware, with exact results."""
    if context.invoked_subcommand is None:
        click.echo(START_PAGE, err=True)
        context.exit(EXIT_USER_ERROR)  # as click does where a command is missing


_COMMANDS = (
    init.init,
    run.run,
    run.check,
    data_set.data,
    find.find_lr,
    find.find_batch,
    slurm.submit,
    slurm.slurm_script,
    sweep.sweep,
    labels.labels,
    status.list_runs,
    status.status,
    status.logs,
    status.stop,
    status.cancel,
    doctor.doctor,
    disk.rm,
    disk.prune,
    cache.cache,
    report.report,
    model.evaluate,
    model.predict,
    model.export,
    pack.pack,
    tracking.wandb_sync,
    verify.verify,
)
for command in _COMMANDS:
    cli.add_command(command)
