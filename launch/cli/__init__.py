"""The `launch` command. Slow imports are made in the functions that need them, so that help and errors come at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import click

from launch.cli import cache, data_set, doctor, model, pack, report, run, runs, slurm, sweep, tracking, verify
from trainlib.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, TrainlaunchError, not_permitted
from trainlib.runs.attempt.stop_request import ignore_stop_signals
from trainlib.runs.terminal.printable import encode_anything, print_error
from trainlib.runs.terminal.streams import OutputLostError, flush_streams, leave, secure_streams


def program() -> NoReturn:
    """Run one command and exit with its code: the `launch` program."""
    secure_streams()
    code = main()
    ignore_stop_signals()  # while the interpreter ends, they would change the code
    leave(code, at_once=code == EXIT_INTERRUPTED)  # a thread may be inside a decoder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    encode_anything()
    try:
        code = cli.main(arguments, prog_name="launch", standalone_mode=False)
        flush_streams()
    except click.exceptions.Abort:
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
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


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="The version.")
def cli() -> None:
    """Train an image classifier from one YAML file, on any hardware, with exact results."""


_COMMANDS = (
    run.run,
    run.check,
    data_set.data,
    slurm.submit,
    sweep.sweep,
    runs.list_runs,
    runs.status,
    runs.logs,
    runs.stop,
    runs.cancel,
    doctor.doctor,
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
