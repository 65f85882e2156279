"""When the next checkpoint is due: every so many steps, or as its cost and the failures so far make best.

The best interval between two checkpoints is about sqrt(2 * cost * time between two failures): J. W. Young, "A first
order approximation to the optimum checkpoint interval", 1974; J. T. Daly, 2006, has the terms of higher order.
"""

from __future__ import annotations

import math
import time

from trainlib.distributed.process_group import broadcast_object
from trainlib.training.metrics.clock import Clock

FIRST_STEPS = 10  # of an attempt, after which the first checkpoint tells what one costs
LARGEST_SHARE = 0.01  # of the time, that checkpoints may take
EXPECTED_SECONDS = 24 * 3600.0  # between two failures, before any was seen


def best_steps(cost: float, step_seconds: float, seconds: float, failures: int) -> int:
    """Return the number of steps between two checkpoints.

    cost           seconds that the training waits for a checkpoint
    step_seconds   that a step takes
    seconds        that the run has trained
    failures       of the machine in that time; one more is expected in the next day
    """
    between_failures = (EXPECTED_SECONDS + seconds) / (1 + failures)
    best = max(math.sqrt(2 * cost * between_failures), cost / LARGEST_SHARE)
    return max(1, math.ceil(best / max(step_seconds, 1e-6)))


class CheckpointInterval:
    """Says when a checkpoint is due, the same on every rank.

    every      steps between two; None: as `best_steps` says
    step       that the attempt begins at
    failures   of the machine that the run has seen; known to rank 0
    """

    def __init__(self, every: int | None, step: int, failures: int = 0):
        self._every, self._failures = every, failures
        self._next = step + FIRST_STEPS
        self._cost = 0.0

    def is_due(self, step: int) -> bool:
        """Return True if a checkpoint is due after this step, besides those of the best and of the last."""
        return step >= self._next if self._every is None else step % self._every == 0

    def agree(self, problem: str | None, step: int, clock: Clock, began: float) -> str | None:
        """Return what rank 0 says went wrong with a checkpoint, on every rank, and settle when the next one is due.

        began   when the checkpoint was begun, by `time.perf_counter`
        A collective.
        """
        if self._every is not None:
            return broadcast_object(problem)
        self._cost = max(self._cost, time.perf_counter() - began)
        steps = best_steps(self._cost, clock.mean_step_seconds(began), clock.seconds, self._failures)
        problem, self._next = broadcast_object((problem, step + steps))
        return problem
