"""Keeping the checkpoints of a run: writing them, pruning old ones, and surviving writes that fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from trainlib.models.optimizers.schedule import Schedule
from trainlib.runs.records.checkpoints import steps_in
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Contents
from trainlib.training.checkpoints.space import free_bytes
from trainlib.training.metrics.progress import Progress
from trainlib.training.step.state import TrainState

logger = logging.getLogger("trainlib.training.checkpoints")

MAX_FAILED_WRITES = 3  # in a row: training on would only lose more
GOES_ON = "the run ends here, and goes on from the last good one when it is started again"


class CheckpointManager:
    """Writes a run's checkpoints and keeps the newest `keep` of them beside the best. Used by rank 0 alone.

    In the background, `save` returns once the state is copied to host memory, and a second one waits for the first.

    failures      of the machine, which have ended earlier attempts of the run
    require_own   raises where the run directory is another process's by now, as after this one was frozen for long
    """

    def __init__(
        self,
        directory: Path,
        keep: int,
        facts: Mapping[str, Any],
        *,
        background: bool = False,
        failures: int = 0,
        require_own: Callable[[], None] = lambda: None,
    ):
        self.failures, self._require_own = failures, require_own
        self._directory = directory
        self._keep = keep
        self._facts = facts
        self._safe: set[int] = set()
        self._failed_writes, self._reason = 0, ""  # the reason of the newest; torch's own hides a full disk
        self._best: int | None = None
        self._writer = ThreadPoolExecutor(1, "checkpoint writer") if background else None
        self._under_way: Future[None] | None = None

    def save(self, contents: Contents, flush: Callable[[], None] = lambda: None) -> None:
        """Write a checkpoint, then remove old ones. A write that fails warns, and leaves the old ones.

        contents   that of the step that its fact `best_step` names is not removed
        flush      makes safe what leads to this checkpoint, before it; OSError where it cannot
        """
        self._wait()
        if self._writer is None:
            self._save(contents, flush)
        else:
            self._under_way = self._writer.submit(self._save, contents.copied_to_host(), flush)

    def problem(self, must_have: int | None = None) -> str | None:
        """Why training must end, or None: a checkpoint that must be safe is not, or too many in a row failed."""
        if must_have is not None:
            self._wait()
            if must_have not in self._safe:
                return f"the checkpoint of step {must_have} could not be written ({self._reason}); {GOES_ON}"
        if self._failed_writes >= MAX_FAILED_WRITES:
            return f"{self._failed_writes} checkpoints in a row could not be written ({self._reason}); {GOES_ON}"
        return None

    def _wait(self) -> None:
        """Until the checkpoint under way is safe, or has failed."""
        if self._under_way is not None:
            self._under_way.result()
            self._under_way = None

    def close(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self._writer is not None:
            self._writer.shutdown()

    def _save(self, contents: Contents, flush: Callable[[], None]) -> None:
        step, best_step = contents.step, contents.facts.get("best_step")
        try:
            flush()
            checkpoint.save(self._directory, contents.with_facts(self._facts), self._require_own)
        except OSError as error:
            self._failed_writes += 1
            self._reason = f"{error}; {free_bytes(self._directory) / 1e6:,.1f} MB are free there"
            logger.warning("the checkpoint of step %d was not written (%s); training goes on", step, self._reason)
            return
        self._failed_writes = 0
        self._safe.add(step)
        try:
            if best_step in steps_in(self._directory):  # else its write failed: the best before it stays
                self._best = best_step
            protected = set() if self._best is None else {self._best}
            checkpoint.prune(self._directory, self._keep, protected, self._safe)
        except OSError as error:
            logger.warning("old checkpoints could not be removed (%s)", error)


class StateWriter(Protocol):
    """Something that writes the state, or a copy of it: see `CheckpointManager.save`."""

    def save(self, contents: Contents, flush: Callable[[], None]) -> None:
        """Write the state, or a copy of it: its tensors change afterwards."""


def hand_over(
    state: TrainState, schedule: Schedule, progress: Progress, writer: StateWriter | None, flush: Callable[[], None]
) -> None:
    """Give the whole state to its writer, on rank 0; in elastic mode, first check that all ranks hold it. A collective.

    writer   None on the other ranks
    flush    makes safe what leads to this state; called here on the other ranks, and by the writer on rank 0
    """
    module = state.classifier.module
    state.reducer.require_same_state({**module.state_dict(), **state.ema.tensors()})
    saved_progress = progress.state_dict(state.accelerator.device)
    if writer is None:
        flush()
        return
    with state.ema.swapped_in():
        trainer_state = {"progress": saved_progress, "schedule": schedule.state_dict(), **state.state_dict()}
        best_step = progress.best["step"] if progress.best else None
        thresholds = {"thresholds": progress.thresholds} if progress.thresholds else {}
        facts = {"best_step": best_step, "num_rows": progress.num_rows, **thresholds}
        writer.save(Contents(progress.step, module.state_dict(), trainer_state, facts), flush)
