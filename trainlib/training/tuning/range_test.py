"""The learning-rate range test (Smith, "Cyclical Learning Rates for Training Neural Networks", 2017).

A short training in which the learning rate grows by the same factor at every step. Where the loss falls fastest, a
training may begin; where it explodes, none can.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from trainlib.errors import UserError
from trainlib.runs.records.rows import Row
from trainlib.training.hooks import Hook

if TYPE_CHECKING:
    from trainlib.training.step.train_step import StepResult
    from trainlib.training.trainer import Trainer

MEMORY = 0.9  # of the running mean of losses that decides where to stop: about ten steps
EXPLODED = 4.0  # times the smallest running mean so far
WINDOW = 5  # losses on either side of a point, of which the median is drawn, and over which its slope is taken


@dataclass(frozen=True)
class Suggestion:
    """A learning rate to begin with.

    lr       where the smoothed loss falls fastest
    lowest   where the smoothed loss is smallest
    """

    lr: float
    lowest: float


def learning_rate(step: int, lowest: float, highest: float, num_steps: int) -> float:
    """Return the learning rate of a step, counted from 0: `lowest` at the first, `highest` at the last, exponential."""
    return float(lowest * (highest / lowest) ** (step / (num_steps - 1)))


def exploded_at(losses: Sequence[float]) -> int | None:
    """Return the index of the first loss at which the test is over; None where it is not.

    That is one that is not finite, or with which the running mean exceeds EXPLODED times its minimum; where that is not
    above 0, as losses of one's own may be, it has risen as far, in parts of the largest size so far.
    """
    mean, smallest, largest = 0.0, math.inf, 0.0
    for index, loss in enumerate(losses):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        corrected = mean / (1 - MEMORY ** (index + 1))
        limit = EXPLODED * smallest if smallest > 0 else smallest + (EXPLODED - 1) * largest
        if not math.isfinite(loss) or corrected > limit:
            return index
        smallest, largest = min(smallest, corrected), max(largest, abs(corrected))
    return None


def smoothed(losses: Sequence[float]) -> list[float]:
    """Return each loss's median with up to WINDOW neighbours on either side, as many on one side as on the other.

    A median lags behind nowhere, and the last losses before an explosion do not spoil it.
    """
    medians = []
    for index in range(len(losses)):
        reach = min(WINDOW, index, len(losses) - 1 - index)
        medians.append(median(losses[index - reach : index + reach + 1]))
    return medians


def suggest(rates: Sequence[float], losses: Sequence[float]) -> Suggestion | None:
    """Return the learning rate at which the smoothed loss falls fastest, before its minimum; None if it never falls.

    rates    of the steps, rising by the same factor
    losses   of the same steps, without those from `exploded_at` on
    """
    smooth = smoothed(losses)
    if len(smooth) <= 2 * WINDOW:
        return None
    bottom = min(range(len(smooth)), key=smooth.__getitem__)
    places = range(WINDOW, min(bottom, len(smooth) - 1 - WINDOW) + 1)
    falls = [(smooth[index + WINDOW] - smooth[index - WINDOW], index) for index in places]
    steepest, index = min(falls, default=(0.0, 0))
    return Suggestion(rates[index], rates[bottom]) if steepest < 0 else None


class RangeTestOver(Exception):  # noqa: N818 - no error: the losses have exploded
    """Ends the training of a range test before its last step, on all ranks at once."""


class RangeTest(Hook):
    """Sets the learning rate of every step, and keeps the losses until they explode: then it raises RangeTestOver.

    rates   of the steps; the optimizer was built with the first of them

    It is to run on every rank. All ranks see the same losses, so all of them end at the same step. Parameter groups
    with a learning rate of their own keep it, as they do when `optimizer.lr` is set.
    """

    def __init__(self, rates: Sequence[float]):
        self.rates = rates
        self.losses: list[float] = []

    def on_start(self, trainer: Trainer) -> None:
        """Find the parameter groups that follow `optimizer.lr`. Raises UserError where there is none."""
        groups = trainer.state.optimizer.optimizer.param_groups
        self._groups = [group for group in groups if group.get("unscaled_lr", group["lr"]) == self.rates[0]]
        if not self._groups:
            raise UserError(
                "optimizer.lr: no parameter uses it, as each is in a group of optimizer.param_groups that has an lr of "
                "its own: leave one of these out to find its value"
            )

    def on_row(self, row: Row) -> None:
        """Keep the loss of a step."""
        if row.get("scope") == "step":
            self.losses.append(float(row["loss"]))

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        """Set the learning rate of the next step."""
        if exploded_at(self.losses) is not None:
            raise RangeTestOver
        rate = self.rates[min(trainer.progress.step, len(self.rates) - 1)]
        for group in self._groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
            if "unscaled_lr" in group:
                group["unscaled_lr"] = rate
