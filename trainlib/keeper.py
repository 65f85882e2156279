"""Keeping the checkpoints of a run: writing them, pruning old ones, and surviving writes that fail."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from trainlib import checkpoint
from trainlib.errors import TrainlaunchError

logger = logging.getLogger("trainlib.checkpoint")

MAX_FAILED_WRITES = 3  # in a row; then the run ends, resumable from what is there


class Keeper:
    """Writes a run's checkpoints and keeps the newest `keep` of them beside the best. Used by rank 0 alone."""

    def __init__(self, directory: Path, keep: int, facts: Mapping[str, Any]):
        self._directory = directory
        self._keep = keep
        self._facts = facts
        self._verified: set[int] = set()
        self._failed_writes = 0

    def save(self, step: int, model: Mapping[str, Tensor], trainer: Mapping[str, Any], best_step: int | None) -> None:
        """Write a checkpoint, then remove old ones. A failed write warns; several in a row raise TrainlaunchError."""
        try:
            checkpoint.save(self._directory, step, model, trainer, self._facts)
        except OSError as error:
            self._failed_writes += 1
            if self._failed_writes >= MAX_FAILED_WRITES:
                raise TrainlaunchError(
                    f"{self._failed_writes} checkpoints in a row could not be written ({error}); the run ends here and "
                    f"can be resumed from the last good one in {self._directory}"
                ) from error
            logger.warning("the checkpoint of step %d was not written (%s); training goes on", step, error)
            return
        self._failed_writes = 0
        self._verified.add(step)
        checkpoint.prune(self._directory, self._keep, {best_step} if best_step is not None else set(), self._verified)
