"""Hooks: observers that are called during training and do not change it. The docstring of `Hook` shows when."""

from __future__ import annotations

import difflib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trainlib.runs.attempt.step_file import STEP_FILES, StepFile
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.runs.machine import launch_variables
from trainlib.runs.records import reasons
from trainlib.runs.records.rows import Row

if TYPE_CHECKING:
    from trainlib.runs.directory import RunDirectory
    from trainlib.training.step.train_step import StepResult
    from trainlib.training.trainer import Trainer


class Hook:
    """The base class of observers of a training: override the events that you need, the others do nothing.

    This is the loop (`Trainer.run`), with its events in their order:

        on_start(trainer)
        for each step that is left:
            train the step
            on_progress()
            every tracking.log_every steps:          on_row(row)      split "train", scope "step"
            if the epoch ends:
                                                     on_row(row)      split "train", scope "epoch"
                for each batch of validation:        on_progress()
                                                     on_row(row)      split "val"
                                                     on_epoch_end(trainer, metrics)
            if a checkpoint is due:                  on_checkpoint()  before it is written
            on_step_end(trainer, result)
            if any rank was asked to stop:           on_checkpoint(), and the loop ends
        on_stop(trainer)
        if the run is complete, test:                on_progress() for each batch, on_row(row) with split "test"
        before summary.json is written, on rank 0:   on_checkpoint()
        close()                                      also after an error

    A hook is called on each rank that it is given to, in the order of the list. It must only observe: whatever changes
    weights, gradients or random numbers on one rank changes the result. A hook that raises ends the run.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in vars(cls):
            if name.startswith("on_") and not hasattr(Hook, name):
                close = difflib.get_close_matches(name, EVENTS, n=1, cutoff=0.0)[0]
                raise TypeError(f"{cls.__name__}.{name} is no event of a hook; did you mean {close}?")

    def on_start(self, trainer: Trainer) -> None:
        """Prepare; called once, before this attempt's first step."""

    def on_progress(self) -> None:
        """React to a sign of life: called after every training step and every batch of an evaluation."""

    def on_row(self, row: Row) -> None:
        """Record a row of metrics.jsonl: time, step, epoch, split, loss, accuracy, count, lr, images_per_second."""

    def on_epoch_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Look at an epoch's metrics: train/loss, train/accuracy and, with a validation split, those of `val/`.

        `trainer.epoch` epochs are done.
        """

    def on_checkpoint(self) -> None:
        """Make safe what belongs before a checkpoint; OSError where that fails, and the checkpoint is not written then.

        With `checkpoint.background`, and for a snapshot (see `trainlib.training.checkpoints.snapshots`), it is called
        from the thread that writes it, at one moment from one thread only.
        """

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        """Look at a finished step: `trainer.progress.step` steps are done.

        `result.micro_batches` has the losses of this rank's micro-batches; to read a tensor waits for the GPU.
        """

    def on_stop(self, trainer: Trainer) -> None:
        """Look at the end of the loop: at the end of training, or where the ranks stopped before it."""

    def close(self) -> None:
        """Give back what the hook holds; called once, also after an error."""


EVENTS = tuple(name for name in vars(Hook) if name.startswith("on_"))


class HookList:
    """Several hooks, called in their order; only those that override an event pay for it."""

    def __init__(self, hooks: Iterable[Hook]):
        """Collect the methods that each event calls."""
        hooks = tuple(hooks)
        self.on_start = _overriding(hooks, "on_start")
        self.on_progress = _overriding(hooks, "on_progress")
        self.on_row = _overriding(hooks, "on_row")
        self.on_epoch_end = _overriding(hooks, "on_epoch_end")
        self.on_checkpoint = _one_at_a_time(_overriding(hooks, "on_checkpoint"))
        self.on_step_end = _overriding(hooks, "on_step_end")
        self.on_stop = _overriding(hooks, "on_stop")


def _overriding(hooks: tuple[Hook, ...], event: str) -> Callable[..., None]:
    """Return a function that calls this event's method of each hook that has one of its own."""
    methods = [getattr(hook, event) for hook in hooks if getattr(type(hook), event) is not getattr(Hook, event)]

    def call(*arguments: Any) -> None:
        for method in methods:
            method(*arguments)

    return methods[0] if len(methods) == 1 else call


def _one_at_a_time(function: Callable[[], None]) -> Callable[[], None]:
    """Return the same function, which one thread waits for while another one is in it."""
    lock = threading.Lock()

    def call() -> None:
        with lock:
            function()

    return call


class Tracker(Protocol):
    """Something that records rows of metrics. `flush` makes all rows so far safe; `close` ends it."""

    def log(self, row: Row) -> None:
        """Record a row."""

    def flush(self) -> None:
        """Make the rows so far safe; OSError where they cannot be written."""

    def close(self) -> None:
        """Record no more."""


class TrackerHook(Hook):
    """Gives every row of a training to a tracker, and has it flushed before each checkpoint."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker

    def on_row(self, row: Row) -> None:
        """Record the row."""
        self._tracker.log(row)

    def on_checkpoint(self) -> None:
        """Make the rows safe that lead to the checkpoint."""
        self._tracker.flush()


class HeartbeatHook(Hook):
    """Tells a watchdog that this rank is alive."""

    def __init__(self, heartbeat: Callable[[], None]):
        self._heartbeat = heartbeat

    def on_progress(self) -> None:
        """Send the heartbeat."""
        self._heartbeat()


class StepFileHook(Hook):
    """Tells the launcher how far this rank has come, for the case that it dies."""

    def __init__(self, folder: Path, rank: int):
        self._folder, self._rank = folder, rank
        self._file: StepFile | None = None

    @classmethod
    def from_environment(cls, rank: int) -> list[StepFileHook]:
        """Return the hook in a list, or an empty list without a launcher that wants to know."""
        folder = os.environ.get(STEP_FILES)
        return [cls(Path(folder), rank)] if folder else []

    def on_start(self, trainer: Trainer) -> None:
        """Make the file; without it, as on a full disk, the launcher believes that the run has not come further."""
        self._progress = trainer.progress
        with suppress(OSError):
            self._file = StepFile(self._folder, self._rank, trainer.progress.step)

    def on_progress(self) -> None:
        """Write the number of steps that are done."""
        if self._file is not None:
            self._file.write(self._progress.step)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


class OwnershipHook(Hook):
    """Ends the training when the run directory was moved, or another process has taken it over."""

    def __init__(self, run: RunDirectory):
        self._run = run

    def on_progress(self) -> None:
        """Raise RunDirectoryError if that was noticed."""
        if self._run.is_lost:
            self._run.require_own()

    def on_checkpoint(self) -> None:
        """Look, and raise RunDirectoryError: the checkpoint would be in another run's directory."""
        self._run.require_own()


class EndOfJobHook(Hook):
    """Asks the run to stop while a checkpoint still fits before the end of its SLURM job."""

    def __init__(self, end_time: float, flag: StopFlag):
        """end_time: unix seconds, as the batch script sets TRAINLAUNCH_END_TIME."""
        self._end_time = end_time
        self._flag = flag

    @classmethod
    def from_environment(cls, flag: StopFlag) -> list[EndOfJobHook]:
        """Return the hook in a list, or an empty list outside of a job whose end is known."""
        end_time = launch_variables.job_end_time()
        return [cls(end_time, flag)] if end_time is not None else []

    def on_start(self, trainer: Trainer) -> None:
        """Remember the clock, which knows how long steps and checkpoints take."""
        self._clock = trainer.clock

    def on_progress(self) -> None:
        """Ask to stop when another step and a checkpoint may not fit any more."""
        if self._clock.time_is_up(self._end_time - time.time()):
            self._flag.ask(reasons.END_TIME)
