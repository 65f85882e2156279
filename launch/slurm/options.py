"""Checks options of sbatch, from the command line and from site presets, and reads time limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from trainlib.config.checking.suggest import nearest
from trainlib.config.schema import slurm as schema
from trainlib.errors import UserError

# The value of an option that takes none, and that of an option to leave out although it is set elsewhere.
FLAG, OMITTED = "", None
Options = Mapping[str, str | None]

_RESERVED = {
    "array": "launch sweep starts several runs as one array",
    "chdir": "change to that folder first: the run's files go to runs/ in it",
    "parsable": "it is always given",
    "test-only": "--dry-run prints the call",
    "wait": "--wait of launch submit follows the job, across requeues too",
    "wrap": "the batch script is slurm/train.sbatch",
}
_LONG_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*[a-z])")


def parse_options(words: Sequence[str], known: Sequence[str] = ()) -> dict[str, str | None]:
    """Return the options in words of the command line: `KEY=VALUE`, `KEY` alone, or `KEY=null` to omit one.

    known   the options that this machine's sbatch takes; empty where that could not be found out
    Raises UserError for a word that is no such option.
    """
    options: dict[str, str | None] = {}
    for word in words:
        key, equals, text = word.removeprefix("--").partition("=")
        if equals and not text:
            raise UserError(f"--sbatch {word}: has no value; {key} alone is an option without one, {key}=null omits it")
        options[key] = OMITTED if text == "null" else text
        if rule := broken_rule(key, options[key], known):
            raise UserError(f"--sbatch {word}: {rule}")
    return options


def broken_rule(key: str, value: str | None, known: Sequence[str]) -> str | None:
    """Return why an option is refused: sbatch does not have it, or it must not be set. None for a good one."""
    if key in _RESERVED:
        return f"cannot be set: {_RESERVED[key]}"
    if key == "export" and value is not OMITTED and "ALL" not in value.split(","):
        return "must begin with ALL, as in ALL,NAME=VALUE: the job's settings are in the environment"
    if len(key) < 2:
        return "must be an option's long name, as in qos=high"
    if known and key not in known:
        guess = nearest(key, known)
        advice = f"did you mean {guess}?" if guess else "sbatch --help lists those that it has"
        return f"sbatch has no option --{key}; {advice}"
    return None


def long_options(help_text: str) -> list[str]:
    """Return the long options in the text of `sbatch --help`, sorted."""
    return sorted(set(_LONG_OPTION.findall(help_text)))


def minutes_of(time: str) -> float | None:
    """Return a time limit as SLURM writes it, in minutes; None for no limit. Raises UserError for other text."""
    try:
        return schema.minutes_of(time)
    except ValueError as error:
        raise UserError(f"slurm.time: got {time!r}, {error}") from None
