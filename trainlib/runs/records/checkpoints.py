"""The checkpoints in a run directory, by name; trainlib.training.checkpoints writes and verifies what is in them.

A checkpoint is a folder `checkpoints/step-00000123`. Others beside it do not count: unfinished ones, and those that
were set aside (`step-00000123.damaged`).
"""

from __future__ import annotations

from pathlib import Path

from trainlib.errors import CheckpointError

PREFIX = "step-"


def name_of(step: int) -> str:
    """Return the name of the checkpoint that was written after this many optimizer steps."""
    return f"{PREFIX}{step:08d}"


def steps_in(directory: Path) -> dict[int, Path]:
    """Return the checkpoints in a folder by their step, ascending, whether or not they are whole."""
    found = {}
    for path in directory.glob(f"{PREFIX}*"):
        digits = path.name.removeprefix(PREFIX)
        if digits.isdecimal() and path.is_dir() and not path.is_symlink():
            found[int(digits)] = path
    return dict(sorted(found.items()))


def find_named(directory: Path, named: str, option: str) -> Path:
    """Return the checkpoint that an option names, by its name or its path.

    directory   the run's checkpoints, one of which it must be
    option      for the message, `--resume`
    Raises CheckpointError.
    """
    path = Path(named) if Path(named).is_dir() else directory / named
    if not path.is_dir() or path.resolve().parent != directory.resolve():
        there = ", ".join(path.name for path in steps_in(directory).values()) or "none"
        raise CheckpointError(f"{option} {named}: no such checkpoint of this run; there are: {there}")
    return path
