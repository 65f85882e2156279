"""What stays of the checkpoints of a finished run: `checkpoint.after`, and `launch prune`."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from trainlib.errors import CheckpointError
from trainlib.runs.records.checkpoints import steps_in
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.best import best_or_newest
from trainlib.training.checkpoints.checkpoint import Checkpoint

logger = logging.getLogger("trainlib.training.checkpoints")


def keep_after(run: Path, keep: Collection[str], *, optimizer: bool) -> int:
    """Remove a run's checkpoints but the best and the last, or one of the two; return how many bytes that freed.

    keep        "best", "last" or both; both are the last where the run has no best one
    optimizer   keep the state of the optimizer, without which the run cannot be made longer

    What stays is verified before anything is removed. Raises CheckpointError where nothing whole is left.
    """
    return remove_others(run, choose_kept(run, keep), optimizer=optimizer)


def choose_kept(run: Path, keep: Collection[str]) -> dict[int, Checkpoint]:
    """Return the checkpoints of a run that stay, verified, by their step; see `keep_after`."""
    last = checkpoint.newest(run / "checkpoints")
    if last is None:
        raise CheckpointError(f"{run}: has no whole checkpoint: nothing was removed")
    chosen = {"last": last, "best": best_or_newest(run)[0]}
    return {chosen[name].step: chosen[name] for name in keep}


def remove_others(run: Path, kept: Mapping[int, Checkpoint], *, optimizer: bool) -> int:
    """Remove a run's checkpoints but these; return how many bytes that freed.

    optimizer   as for `keep_after`
    """
    folder = run / "checkpoints"
    before = size_of(folder)
    checkpoint.keep_only(folder, kept)
    if not optimizer:
        for found in kept.values():
            checkpoint.keep_weights_only(found)
    return before - size_of(folder)


def size_of(folder: Path) -> int:
    """Return the bytes of the files in a folder and those below it."""
    return sum(os.lstat(Path(at) / name).st_size for at, _, names in os.walk(folder) for name in names)


def tell_freed(run: Path, freed: int) -> str:
    """Return a sentence on what stayed and what was freed."""
    names = ", ".join(path.name for path in steps_in(run / "checkpoints").values())
    return f"{run.name}: {freed / 1e6:,.1f} MB freed; {names} stayed"
