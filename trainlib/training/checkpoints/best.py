"""The checkpoint of a run whose weights are used afterwards: the best one, else the newest."""

from __future__ import annotations

import logging
from pathlib import Path

from trainlib.errors import CheckpointError
from trainlib.runs.records.checkpoints import name_of, steps_in
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Checkpoint

logger = logging.getLogger("trainlib.training.checkpoints")


def best_or_newest(run: Path) -> tuple[Checkpoint, str]:
    """Return a run's best checkpoint, verified, and "best"; its newest and "last" if there is no best or it is lost.

    Damaged ones are passed over with a warning, and left where they are. Raises CheckpointError if none is whole.
    """
    steps = steps_in(run / "checkpoints")
    newest = next((found for step in reversed(steps) if (found := _verified_or_none(steps[step])) is not None), None)
    if newest is None:
        raise CheckpointError(f"{run}: has no whole checkpoint (yet); train it to its first one, or go on with it")
    best_step = newest.manifest.get("best_step")
    if best_step is None:
        return newest, "last"
    best = newest if best_step == newest.step else _verified_or_none(run / "checkpoints" / name_of(best_step))
    if best is None:
        logger.warning("the best weights are lost; the last ones are used instead")
        return newest, "last"
    return best, "best"


def _verified_or_none(path: Path) -> Checkpoint | None:
    try:
        return checkpoint.verify(path)
    except CheckpointError as damage:
        logger.warning("passed over: %s", damage)
        return None
