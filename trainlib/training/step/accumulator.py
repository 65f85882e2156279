"""Keeps what steps came to until the host reads it, and judges those that were not applied."""

from __future__ import annotations

import logging
import math
from itertools import islice

from trainlib.errors import NonFiniteError
from trainlib.training.metrics.progress import Progress
from trainlib.training.metrics.sums import Sums, accumulate, empty_sums, gather_sums, to_host
from trainlib.training.step.state import TrainState
from trainlib.training.step.train_step import StepResult

logger = logging.getLogger("trainlib")

MAX_UNREAD = 1000  # steps whose numbers wait on a GPU; rows and checkpoints read them before


class MetricAccumulator:
    """Adds steps to the sums of `progress`. All ranks take the same steps, and read them at the same ones."""

    def __init__(self, state: TrainState, progress: Progress, on_nonfinite: str, max_nonfinite_steps: int):
        self._engine = state
        self._progress = progress
        self._on_nonfinite = on_nonfinite
        self._max_nonfinite_steps = max_nonfinite_steps
        self._unread: list[tuple[int, StepResult]] = []
        self._last = empty_sums(len(progress.sums))

    def add(self, step: int, result: StepResult) -> None:
        """What step `step`, from 0, came to. It is read at once where the host knows already whether it was applied.

        Raises NonFiniteError as `read` does.
        """
        self._unread.append((step, result))
        if result.applied is not None or len(self._unread) == MAX_UNREAD:
            self.read()

    def read(self) -> Sums:
        """Bring all steps to the host; this rank's sums of the last one. A synchronisation point on a GPU.

        Raises NonFiniteError, on every rank, where one of them could not be applied and training is to end then.
        """
        taken, self._unread = self._unread, []
        unknown = [result for _, result in taken if not result.norm_and_losses]
        norms_and_losses = iter(to_host([t for r in unknown for t in (r.grad_norm, *(m.loss for m in r.measured))]))
        num_correct = iter(to_host([m.num_correct for _, result in taken for m in result.measured]))
        for step, result in taken:
            norm, *losses = result.norm_and_losses or islice(norms_and_losses, 1 + len(result.measured))
            values = [(m, loss, next(num_correct)) for m, loss in zip(result.measured, losses, strict=True)]
            self._last = accumulate(empty_sums(len(self._progress.sums)), values)
            applied = result.applied
            if applied is None:
                applied = all(map(math.isfinite, (norm, *(loss for _, loss, _ in values))))
            if applied or self._only_overflowed():
                for total, (loss, correct) in zip(self._progress.sums, self._last, strict=True):
                    total[0] += loss
                    total[1] += correct
            else:
                self._pass_over(step, norm)
        return self._last

    def _only_overflowed(self) -> bool:
        """Whether fp16 gradients overflowed while every rank's loss is finite: the loss scale is lowered, no more."""
        return self._engine.overflow_is_expected() and all(map(math.isfinite, self._losses()))

    def _losses(self) -> list[float]:
        """Of every shard of the last step. A synchronisation point."""
        return [loss for loss, _ in gather_sums(self._last, self._engine.accelerator.device)]

    def _pass_over(self, step: int, norm: float) -> None:
        """A step whose gradient was not finite: end all ranks, or note it. All of them are here, at the same step."""
        progress, skipped = self._progress, self._progress.skipped_steps
        place = "on rank" if self._engine.elastic is None else "in virtual shard"
        losses = enumerate(self._losses())
        where = [f"the loss is {loss} {place} {shard}" for shard, loss in losses if not math.isfinite(loss)]
        found = "; ".join(where) or f"every loss is finite, but the gradient's norm is {norm}"
        message = f"step {step + 1} was not applied: {found}"
        skipped.append(step)
        if self._on_nonfinite == "skip" and len(skipped) <= self._max_nonfinite_steps:
            logger.warning("%s (%d so far)", message, len(skipped))
            return
        progress.step = step  # where the weights are; a GPU may have come further, and has applied nothing since
        if self._on_nonfinite == "stop":
            raise NonFiniteError(
                f"{message}. Weights and checkpoints are as they were before it. Lower optimizer.lr or set "
                "train.clip_grad_norm, look at the data, or pass over such steps with train.on_nonfinite=skip"
            )
        raise NonFiniteError(
            f"{message}; there were {len(skipped) - 1} such steps before, and "
            f"train.max_nonfinite_steps allows {self._max_nonfinite_steps}"
        )
