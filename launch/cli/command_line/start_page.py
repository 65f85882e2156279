"""What `launch` alone prints, and the line after a command that says what to do next."""

from __future__ import annotations

import sys
from functools import cache

import click

from trainlib.runs.terminal.printable import printable

START_PAGE = """\
trainlaunch trains an image classifier from one YAML file, on any hardware,
with exact results.

  launch run quickstart          try it on small drawings: nothing to download
  launch init photos             write photos.yaml for photos/CLASS/*.jpg
  launch run photos.yaml         train; after Ctrl-C, the same command goes on
  launch report photos           one HTML page: curves, classes, mistakes
  launch predict photos new.jpg  name what is in a picture

launch --help lists all commands, launch run --help says what one takes."""


def tell_next(*commands: str) -> None:
    """Say on standard error, in one line, what may be typed next, behind all that standard output has been given."""
    sys.stdout.flush()
    click.echo(printable(f"next: {'    or: '.join(commands)}"), err=True)


@cache
def tell_loading() -> None:
    """Say on standard error, once, that torch is being loaded, which takes seconds, unless it is there already."""
    if "torch" not in sys.modules:
        click.echo("loading torch ...", err=True)
