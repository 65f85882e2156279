"""What rank 0 says of its training within the last minute: for progress.json and the console."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trainlib.runs.files.json_records import Record
from trainlib.runs.records.rows import Row
from trainlib.training.hooks import Hook

if TYPE_CHECKING:
    from trainlib.training.step.train_step import StepResult
    from trainlib.training.trainer import Trainer

WINDOW = 60.0  # seconds
PART = 3.0  # seconds of which the window is made


class Pulse(Hook):
    """Keeps the step, and loss and speed of the last minute, at the cost of a few additions a step.

    The loss is that of rank 0's samples, and known where the host reads the losses of each step anyway: on a CPU.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        step: int,
        *,
        compiles: bool = False,
        gpus: Callable[[], Sequence[Record]] = list,
    ):
        """Begin at a step.

        compiles   the first step compiles the model, which may take minutes
        gpus       gives what is known of the load of this machine's GPUs
        """
        self._gpus = gpus
        self._total, self._steps_per_epoch, self._step = total_steps, steps_per_epoch, step
        self._images_per_step = 0
        self.phase = "compiling the model" if compiles else "training"
        self._slow: str | None = None  # which ranks are, as the newest row of a step says
        self._loss, self._weight = 0.0, 0.0  # of this part of the window
        self._parts: deque[tuple[float, int, float, float]] = deque()  # (when it began, at which step, loss, weight)
        self._begin_part()

    def on_start(self, trainer: Trainer) -> None:
        """Begin to measure."""
        self._images_per_step = trainer.plan.global_batch_size
        self._parts.clear()
        self._begin_part()

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        """Count a step."""
        self._step = trainer.progress.step
        self.phase = "training"
        for part, loss in zip(result.micro_batches, result.norm_and_losses[1:], strict=False):
            self._loss += loss * part.denominator
            self._weight += part.denominator
        if time.monotonic() - self._began > PART:
            self._end_part()

    def on_row(self, row: Row) -> None:
        """Know that an evaluation begins, or is over, and which ranks are slow."""
        if row.get("scope") == "step":
            self._slow = row.get("slow")
        if row["split"] == "train" and row.get("scope") == "epoch":
            self.phase = "validation"

    def on_stop(self, trainer: Trainer) -> None:
        """Know that the test begins."""
        self.phase = "test"

    def now(self) -> dict[str, Any]:
        """Return the numbers of progress.json (see `read_pulse`). For any thread."""
        loss, weight = self._loss, self._weight
        began, first = self._began, self._first
        for at, step, part_loss, part_weight in list(self._parts):
            began, first = min(began, at), min(first, step)
            loss, weight = loss + part_loss, weight + part_weight
        done, seconds = self._step - first, time.monotonic() - began
        speed = done / seconds if done and seconds > 0 else None
        found = {
            "phase": self.phase,
            "step": self._step,
            "total": self._total,
            "epoch": max(1, -(-self._step // self._steps_per_epoch)),
            "epochs": -(-self._total // self._steps_per_epoch),
            "loss": loss / weight if weight else None,
            "images_per_second": speed and speed * self._images_per_step,
            "seconds_left": speed and (self._total - self._step) / speed,
            "gpus": list(self._gpus()) or None,
            "slow": self._slow,
        }
        return {name: value for name, value in found.items() if value is not None}

    def _begin_part(self) -> None:
        self._loss, self._weight = 0.0, 0.0
        self._began, self._first = time.monotonic(), self._step

    def _end_part(self) -> None:
        self._parts.append((self._began, self._first, self._loss, self._weight))
        while self._parts and time.monotonic() - self._parts[0][0] > WINDOW:
            self._parts.popleft()
        self._begin_part()
