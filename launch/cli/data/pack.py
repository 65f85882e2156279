"""The command `launch pack`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from launch.cli.command_line.arguments import WholeNumber, call
from launch.cli.command_line.start_page import tell_next
from trainlib.errors import EXIT_OK


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--shard-size", type=WholeNumber(min=1), default=1000, show_default=True, help="Megabytes of pictures in each."
)
def pack(folder: Path, out: Path, shard_size: int) -> int:
    """Make shards of class folders of pictures, for file systems that forbid millions of files.

    DIR is as for data.name=image_folder, and stays as it is. OUT is made: tar files that every tar program reads, and
    an index. Training with data.name=archive data.root=OUT gives the same weights as with the folder.
    """
    code = call("trainlib.data.sources.packed.pack", [str(folder), str(out), str(shard_size * 1_000_000)])
    if code == EXIT_OK:
        tell_next(shlex.join(["launch", "init", str(out)]))
    return code
