"""The command line that the training program and the one that prepares a run for it share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from trainlib.config import mark_bare_resume


def parse_arguments(arguments: Sequence[str] | None, program: str = "trainlib.train") -> argparse.Namespace:
    """Parse the command line of the program that trains, or prepares a run: `config`, `code`, `fresh`, `resume`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}", description="Train from configuration files.", allow_abbrev=False
    )
    parser.add_argument("config", nargs="+", metavar="CONFIG | key=value", help="files or shipped names; overrides")
    add_code(parser)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--fresh", action="store_true", help="move an earlier run of this name aside and begin again")
    start.add_argument(
        "--resume", nargs="?", metavar="CHECKPOINT", help="accept harmless changes; or name a checkpoint"
    )
    words = sys.argv[1:] if arguments is None else arguments
    return parser.parse_intermixed_args(mark_bare_resume(words))


def add_code(parser: argparse.ArgumentParser) -> None:
    """Give a program the option `--code`, which may be repeated."""
    parser.add_argument(
        "--code", action="append", default=[], metavar="FILE.py|MODULE", help="code of your own: its parts"
    )
