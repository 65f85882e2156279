"""Rank 0's progress for a person: a live bar in a terminal, bar and curves in a notebook, plain lines anywhere else."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from trainlib.runs.notebook import html
from trainlib.runs.notebook.display import Display, in_notebook
from trainlib.runs.records.rows import Row
from trainlib.training.hooks import Hook
from trainlib.training.hooks.pulse import WINDOW, Pulse

if TYPE_CHECKING:
    from trainlib.training.step.train_step import StepResult
    from trainlib.training.trainer import Trainer

logger = logging.getLogger("trainlib.training.hooks.tracking")

BAR_INTERVAL = 0.5  # seconds between redraws of the bar: one takes a millisecond or two
NOTEBOOK_INTERVAL = 1.0  # seconds between redraws in a notebook
BAR_WIDTH = 10  # characters, at least
LINE_INTERVAL = 5.0  # seconds between plain lines inside an epoch
FRESH = 5.0  # seconds for which the numbers of a row are shown as those of the moment


class Console(Hook):
    """Shows the rows that the trackers get; and, between them, how far the run has come.

    Lines are log records, so that rank 0's log has them too; a quiet console, and that of a notebook, which has curves
    instead, logs them below what a console shows.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        step: int,
        *,
        pulse: Pulse | None = None,
        quiet: bool = False,
        metrics: Sequence[str] = (),
    ):
        """Begin at a step. `metrics` are shown of evaluations, beside loss and accuracy.

        pulse   knows loss and speed of the last minute, which are shown where the newest row of a step is old
        """
        self._pulse = pulse
        self._row_at = float("-inf")
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._epochs = -(-total_steps // steps_per_epoch)
        self._quiet = quiet
        self._display = Display() if in_notebook() and not quiet else None
        self._rows: list[Row] = []  # that a notebook's curves are made of
        self._level = logging.DEBUG if quiet or self._display else logging.INFO
        self._numbers = ""
        self._metrics = metrics
        self._first_step = step
        self._began = time.monotonic()
        self._next_sign = 0.0
        self._bar: Any = None
        if not quiet and not self._display and sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
            self._bar, self._task = _open_bar(total_steps, step, self._epoch(step))
            self._bar_room = len(f"epoch {self._epoch(step)}  {total_steps}/{total_steps}  0:00:00 left  ") + BAR_WIDTH

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        """Show how far the run has come."""
        self.step(trainer.progress.step)

    def step(self, step: int) -> None:
        """Show how far the run is, where it is time for that; otherwise this costs one look at the clock."""
        if self._quiet or (now := time.monotonic()) < self._next_sign:
            return
        if self._display is not None:
            self._next_sign = now + NOTEBOOK_INTERVAL
            self._show(self._display, step, now)
        elif self._bar is not None:
            self._next_sign = now + BAR_INTERVAL
            note = fitting(self._newest(now), self._bar.console.width - self._bar_room)
            self._bar.update(self._task, completed=step, epoch=self._epoch(step), note=note, refresh=True)
        else:
            if self._next_sign:
                place = f"epoch {self._epoch(step)}  step {step:>{len(str(self._total_steps))}}/{self._total_steps}"
                parts = [place, self._newest(now), self._left(step, now)]
                logger.log(self._level, "  ".join(filter(None, parts)))
            self._next_sign = now + LINE_INTERVAL

    def on_row(self, row: Row) -> None:
        """Print the rows of epochs and evaluations, and keep those of steps for the next sign of life."""
        if self._display is not None:
            self._rows.append(row)
            if row["split"] == "test":
                self._show(self._display, row["step"], time.monotonic())
        if row.get("scope") == "step":
            self._numbers, self._row_at = _train_numbers(row), time.monotonic()
            return
        numbers = _train_numbers(row) if row["split"] == "train" else _numbers(row, self._metrics)
        logger.log(self._level, f"epoch {self._of_epochs(row['epoch'])}  {row['split']:<5}  {numbers}")

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, display: Display, step: int, now: float) -> None:
        """Show the bar and the curves so far. A notebook that does not answer is no reason to end."""
        told = [
            f"epoch {self._epoch(step)}",
            f"step {step}/{self._total_steps}",
            self._newest(now),
            self._left(step, now),
        ]
        try:
            display.show(
                html.block(
                    html.text(" · ".join(filter(None, told))),
                    html.bar(step, self._total_steps),
                    html.curves(self._rows),
                )
            )
        except Exception as error:  # noqa: BLE001 - whatever a front end raises
            self._display = None
            logger.warning("the notebook shows no progress any more (%s); training goes on", error)

    def _newest(self, now: float) -> str:
        """Return the numbers of the newest row of a step or, where that is older than a moment, of the last minute.

        On a GPU, where the losses of single steps are not known, a row is shown for a minute.
        """
        if self._pulse is None or (age := now - self._row_at) < FRESH:
            return self._numbers
        live = self._pulse.now()
        if "loss" not in live and age < WINDOW:
            return self._numbers
        loss = f"loss {live['loss']:.4f}" if "loss" in live else ""
        speed = f"{live['images_per_second']:,.0f} images/s" if "images_per_second" in live else ""
        return "  ".join(filter(None, (loss, speed))) or self._numbers

    def _epoch(self, step: int) -> str:
        return self._of_epochs(max(1, -(-step // self._steps_per_epoch)))

    def _of_epochs(self, epoch: int) -> str:
        return f"{epoch:>{len(str(self._epochs))}}/{self._epochs}"

    def _left(self, step: int, now: float) -> str:
        """How long the rest takes, if it goes on as in this attempt so far, evaluations and checkpoints included."""
        done = step - self._first_step
        seconds = (now - self._began) / done * (self._total_steps - step) if done else 0.0
        return f"{timedelta(seconds=round(seconds))} left" if seconds else ""


def _train_numbers(row: Mapping[str, Any]) -> str:
    return f"{_numbers(row)}  lr {row['lr']:.4g}  {row['images_per_second']:,.0f} images/s"


def _numbers(row: Mapping[str, Any], metrics: Sequence[str] = ()) -> str:
    return "  ".join(f"{name} {row[name]:.4f}" for name in ("loss", "accuracy", *metrics))


def fitting(numbers: str, width: int) -> str:
    """As many of the numbers, from the first one on, as there is room for."""
    while numbers and len(numbers) > width:
        numbers, _, _ = numbers.rpartition("  ")
    return numbers


def _open_bar(total_steps: int, step: int, epoch: str) -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    def text(field: str) -> TextColumn:
        return TextColumn(field, table_column=Column(no_wrap=True, overflow="ellipsis"))

    bar = Progress(
        text("epoch {task.fields[epoch]}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        text("left"),
        text("{task.fields[note]}"),
        auto_refresh=False,
        transient=True,
        expand=True,
    )
    task = bar.add_task("training", total=total_steps, completed=step, epoch=epoch, note="")
    bar.start()
    return bar, task
