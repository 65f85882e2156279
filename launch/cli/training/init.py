"""The command `launch init`."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import click

from launch.cli.command_line.arguments import call
from launch.cli.command_line.start_page import tell_next
from trainlib.errors import EXIT_OK, UserError


@click.command()
@click.argument("folder")
def init(folder: str) -> int:
    """Write a configuration for a folder of pictures.

    FOLDER holds one folder of pictures for each class, or train, val and test with such folders; an archive of them, a
    table of paths and labels (CSV, Parquet), or a Hugging Face data set on disk will do as well. ./FOLDER.yaml is
    written, with comments, and never over a file.
    """
    path = Path(folder).expanduser()
    if not path.exists():
        raise UserError(f"{folder}: there is no such folder{_did_you_mean(path)}")
    file = Path(f"{(path.stem if path.is_file() else path.resolve().name) or 'pictures'}.yaml")
    if os.path.lexists(file):
        raise UserError(
            f"{file} exists already, and is not written over: launch run {_word(file)} uses it; move it away to have a "
            "new one written"
        )
    code = call("trainlib.training.programs.data.new_config", [str(path), str(file)])
    if code == EXIT_OK:
        tell_next(f"launch run {_word(file)}")
    return code


def _word(file: Path) -> str:
    """Return the name of the file as a command takes it: one with "=" or a dash in front needs its folder."""
    name = str(file)
    return shlex.quote(f"./{name}" if "=" in name or name.startswith("-") else name)


def _did_you_mean(path: Path) -> str:
    from trainlib.config.checking.suggest import nearest

    there = [entry.name for entry in os.scandir(path.parent) if entry.is_dir()] if path.parent.is_dir() else []
    guess = nearest(path.name, there)
    return f"; did you mean {shlex.quote(str(path.with_name(guess)))}?" if guess else ""
