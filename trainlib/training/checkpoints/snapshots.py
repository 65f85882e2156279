"""Snapshots: checkpoints in host memory, taken more often than those on disk, for the next start by the same launcher.

A snapshot has the files of a checkpoint and is verified like one. It lies in a folder in memory of the launcher's
(`SnapshotFolder`), which outlives the ranks and is gone with the launcher. The state is copied between two steps; a
thread then hashes and writes it. So often are they taken that they cost half a percent of the time.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainlib.distributed.process_group import broadcast_object
from trainlib.errors import CheckpointError, TrainlaunchError
from trainlib.runs.attempt.record import read_attempts
from trainlib.runs.files.json_records import scan_lines
from trainlib.runs.machine.limits import available_memory
from trainlib.runs.records.checkpoints import steps_in
from trainlib.runs.records.rows import METRICS_FILE, miscounted_rows
from trainlib.runs.records.shapes import ROW
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Checkpoint, Contents
from trainlib.training.metrics.clock import Clock

logger = logging.getLogger("trainlib.training.checkpoints")

SHARE = 0.005  # of the time, that snapshots may take
FIRST_STEPS = 10  # of an attempt, after which it is known how long a step takes
FEWEST_STEPS = 5  # between two
KEPT = 2  # the newest one may be of the step in which a rank died, and is not used then
_SECONDS_PER_BYTE = 3e-9  # that a snapshot is believed to cost before the first one: copied, hashed and written
_ROOM = 8  # as many states must fit into free memory: four while one is written, and the training may want more later


class SnapshotWriter:
    """Writes snapshots into the launcher's folder, in a thread. Used by rank 0 alone.

    step      from which the attempt begins; what is newer is removed
    size      bytes of a snapshot, about
    facts     for each manifest, as those of a checkpoint; `attempt`, the number of this one, among them
    seconds   of a processor that the thread has taken so far
    """

    def __init__(self, folder: Path, step: int, size: int, facts: Mapping[str, Any]):
        self._folder, self._facts = folder, facts
        self.size, self.seconds = size, 0.0
        self._writer = ThreadPoolExecutor(1, "snapshot writer")
        self._under_way: Future[None] | None = None
        self._has_failed = False
        checkpoint.remove_partial(folder)
        checkpoint.keep_only(folder, [found for found in steps_in(folder) if found <= step])

    def save(self, contents: Contents, flush: Callable[[], None] = lambda: None) -> None:
        """Copy the state, and have it written; arguments are those of `CheckpointManager.save`.

        Do nothing while the one before is still being written, or where memory has no room.
        """
        if self._under_way is not None:
            if not self._under_way.done():
                return
            self._under_way.result()  # raises what a hook's `on_checkpoint` has raised
        if not has_room(self._folder, self.size):
            return
        self._under_way = self._writer.submit(self._write, contents.copied_to_host(), flush)

    def close(self) -> None:
        """Wait for the snapshot that is being written: it uses what is closed next."""
        self._writer.shutdown()

    def _write(self, contents: Contents, flush: Callable[[], None]) -> None:
        began = time.thread_time()
        try:
            flush()
            checkpoint.save(self._folder, contents.with_facts(self._facts))
            checkpoint.keep_only(self._folder, list(steps_in(self._folder))[-KEPT:])
        except (OSError, TrainlaunchError) as error:  # the latter where the run directory is another's: told elsewhere
            if not self._has_failed:
                logger.info("the snapshot of step %d in %s was not written (%s)", contents.step, self._folder, error)
            self._has_failed = True
        self.seconds += time.thread_time() - began


class Snapshots:
    """Takes a snapshot when one is due, which is the same step on every rank.

    step       from which the attempt begins
    writer     on rank 0; None on the others
    is_start   the attempt begins from a snapshot, of which there is no checkpoint
    """

    def __init__(self, step: int, writer: SnapshotWriter | None, *, is_start: bool = False):
        self.writer, self.is_start = writer, is_start
        self._first, self._next = step, step + FIRST_STEPS
        self._seconds, self._taken = 0.0, 0
        self._is_settled = False  # before, it is not known how long a step takes, and no snapshot is taken

    def take_if_due(self, step: int, clock: Clock, hand_over: Callable[[SnapshotWriter | None], None]) -> None:
        """Take a snapshot if one is due after this step, and settle when the next one is. A collective.

        hand_over   gives the state to the writer, on every rank
        """
        if step < self._next:
            return
        began = time.perf_counter()
        step_seconds = clock.mean_step_seconds(began)
        if self._is_settled:
            hand_over(self.writer)
            self._taken += 1
        self._is_settled = True
        self._seconds += time.perf_counter() - began
        due = step
        if self.writer is not None:
            spent = self._seconds + self.writer.seconds
            due = next_step(self._first, step, spent, self._taken, self.writer.size, step_seconds)
        self._next = broadcast_object(due)

    def close(self) -> None:
        """Wait for the snapshot that is being written."""
        if self.writer is not None:
            self.writer.close()


def next_step(first: int, step: int, spent: float, taken: int, size: int, step_seconds: float) -> int:
    """Return the step of the next snapshot, with which they will have cost `SHARE` of the time.

    first          step from which the attempt began
    step           the present one
    spent          seconds that snapshots have cost so far
    taken          their number
    size           bytes of one
    step_seconds   that a step takes
    """
    expected = spent / taken if taken else size * _SECONDS_PER_BYTE
    return max(step + FEWEST_STEPS, first + math.ceil((spent + expected) / SHARE / max(step_seconds, 1e-6)))


def has_room(folder: Path, size: int) -> bool:
    """Return True if a file system in memory has room for another snapshot, and so has memory itself.

    Half of what is free in the file system stays free: others use it too.
    """
    with suppress(OSError):
        return 2 * size <= shutil.disk_usage(folder).free and _ROOM * size <= available_memory()
    return False


def newest_snapshot(folder: Path | None, run: Path, start: Checkpoint | None) -> Checkpoint | None:
    """Return the newest snapshot that a run can go on from, verified; None where none is newer than its checkpoint.

    folder   in which they are; None without a launcher that keeps them
    start    the checkpoint that the run would go on from
    """
    for step, path in reversed(steps_in(folder).items()) if folder is not None else ():
        if start is not None and step <= start.step:
            break
        with suppress(CheckpointError):
            found = checkpoint.verify(path)
            if _belongs_to(run, found):
                return found
    return None


def _belongs_to(run: Path, snapshot: Checkpoint) -> bool:
    """Return True if a run's rows and checkpoints are still those that led to a snapshot.

    They are not where a later attempt began before it, where rows were lost, or the best checkpoint was lost while
    it was written.
    """
    maker, best = snapshot.manifest.get("attempt"), snapshot.manifest.get("best_step")
    starts = [line for line in read_attempts(run) if line.get("event") == "start"]
    begun = [line.get("from_step") or 0 for line in starts if (line.get("attempt") or 0) > (maker or 0)]
    is_known = maker in [line.get("attempt") for line in starts]
    has_best = best is None or best in steps_in(run / "checkpoints")
    if not (is_known and has_best and all(step >= snapshot.step for step in begun)):
        return False
    rows = scan_lines(run / METRICS_FILE, ROW, limit=sys.maxsize).records
    return miscounted_rows(rows, snapshot.step, snapshot.manifest.get("num_rows")) is None
