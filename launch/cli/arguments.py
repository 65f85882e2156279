"""What several commands take and do alike."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import click


def configs(command: Callable[..., int]) -> Callable[..., int]:
    """The arguments CONFIG... [key=value ...]."""
    return click.argument("arguments", nargs=-1, required=True, metavar="CONFIG... [key=value ...]")(command)


def load_run_name(arguments: Sequence[str]) -> str:
    """Validate the configuration, before torch is imported; the run's name."""
    from trainlib.config import load_config

    name: str = load_config(arguments).name
    return name


def call(program: str, arguments: list[str]) -> int:
    """Run a program of trainlib in this interpreter. Named, not imported: the launcher does not build on trainlib."""
    code: int = importlib.import_module(program).main(arguments)
    return code
