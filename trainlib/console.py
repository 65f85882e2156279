"""Rank 0's progress for a person: a live bar in a terminal, plain lines anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("trainlib.progress")

BAR_INTERVAL = 0.1  # seconds between redraws of the bar
LINE_INTERVAL = 5.0  # seconds between plain lines inside an epoch


class Console:
    """Shows the rows that the trackers get; and, between them, how far the run has come.

    Lines are log records, so that rank 0's log has them too; a quiet console logs them below what a console shows.
    """

    def __init__(self, total_steps: int, epochs: int, step: int, *, quiet: bool = False):
        self._total_steps = total_steps
        self._epochs = epochs
        self._quiet = quiet
        self._level = logging.DEBUG if quiet else logging.INFO
        self._latest: Mapping[str, Any] | None = None
        self._next_sign = 0.0
        self._bar: Any = None
        if not quiet and sys.stdout.isatty():
            self._bar, self._task = _open_bar(total_steps, step)

    def step(self, step: int) -> None:
        """Called after every step; costs one look at the clock, except when it is time for a sign of life."""
        if self._quiet or (now := time.monotonic()) < self._next_sign:
            return
        if self._bar is not None:
            self._next_sign = now + BAR_INTERVAL
            self._bar.update(self._task, completed=step, note=self._note(), refresh=True)
        else:
            if self._next_sign and self._latest is not None:
                logger.log(self._level, "step %d/%d  %s", step, self._total_steps, self._note())
            self._next_sign = now + LINE_INTERVAL

    def log(self, row: Mapping[str, Any]) -> None:
        if row.get("scope") == "step":
            self._latest = row
            return
        line = f"epoch {row['epoch']:>{len(str(self._epochs))}}/{self._epochs}  {row['split']:<5}  {_numbers(row)}"
        if row["split"] == "train":
            line += f"  lr {row['lr']:.4g}  {row['images_per_second']:,.0f} images/s"
        logger.log(self._level, line)

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _note(self) -> str:
        if self._latest is None:
            return ""
        return f"{_numbers(self._latest)}  {self._latest['images_per_second']:,.0f} images/s"


def _numbers(row: Mapping[str, Any]) -> str:
    return f"loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}"


def _open_bar(total_steps: int, step: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        auto_refresh=False,
        transient=True,
    )
    task = bar.add_task("training", total=total_steps, completed=step, note="")
    bar.start()
    return bar, task
