"""Adding up the losses and accuracies of steps, and judging the steps that were not applied."""

from __future__ import annotations

import logging
import math
from itertools import islice

from trainlib.errors import NonFiniteError
from trainlib.training.metrics.progress import Progress
from trainlib.training.metrics.sums import Sums, accumulate, empty_sums, gather_sums, to_host
from trainlib.training.step.state import TrainState
from trainlib.training.step.train_step import StepResult
from trainlib.training.step.update import UpdateStatus

logger = logging.getLogger("trainlib")

MAX_UNREAD = 1000  # steps whose numbers wait on a GPU; rows and checkpoints read them before


class MetricAccumulator:
    """Keeps the results of steps on the device until the host reads them, and adds them to the sums of `progress`.

    All ranks add the same steps, and read them at the same step.

    on_nonfinite          train.on_nonfinite: stop or skip
    max_nonfinite_steps   how many steps may be skipped before training ends
    """

    def __init__(self, state: TrainState, progress: Progress, on_nonfinite: str, max_nonfinite_steps: int):
        self._state = state
        self._progress = progress
        self._on_nonfinite = on_nonfinite
        self._max_nonfinite_steps = max_nonfinite_steps
        self._unread: list[tuple[int, StepResult]] = []
        self._last = empty_sums(len(progress.sums))

    def add(self, step: int, result: StepResult) -> None:
        """Take in the result of step `step`, from 0, and read it at once where the host knows its status already.

        Raises NonFiniteError as `read` does.
        """
        self._unread.append((step, result))
        if result.status is not UpdateStatus.PENDING or len(self._unread) == MAX_UNREAD:
            self.read()

    def read(self) -> Sums:
        """Bring the results of all steps to the host; return this rank's sums of the last step.

        A synchronisation point on a GPU. Raises NonFiniteError, on every rank, where a step could not be applied and
        training is to end then.
        """
        added, self._unread = self._unread, []
        unknown = [result for _, result in added if not result.norm_and_losses]
        norms_and_losses = iter(
            to_host([value for r in unknown for value in (r.grad_norm, *(m.loss for m in r.micro_batches))])
        )
        num_correct = iter(to_host([m.num_correct for _, result in added for m in result.micro_batches]))
        for step, result in added:
            norm, *losses = result.norm_and_losses or islice(norms_and_losses, 1 + len(result.micro_batches))
            values = [(m, loss, next(num_correct)) for m, loss in zip(result.micro_batches, losses, strict=True)]
            self._last = accumulate(empty_sums(len(self._progress.sums)), values)
            if self._was_applied(result, norm, losses) or self._only_overflowed():
                for total, (loss, correct) in zip(self._progress.sums, self._last, strict=True):
                    total[0] += loss
                    total[1] += correct
            else:
                self._skip(step, norm)
        return self._last

    def _was_applied(self, result: StepResult, norm: float, losses: list[float]) -> bool:
        """Return True if the optimizer stepped, which a pending result tells only by its numbers."""
        if result.status is UpdateStatus.PENDING:
            return all(map(math.isfinite, (norm, *losses)))
        return result.status is UpdateStatus.APPLIED

    def _only_overflowed(self) -> bool:
        """Return True if fp16 gradients overflowed while all losses are finite: then only the loss scale is lowered."""
        return self._state.update.overflow_is_expected() and all(map(math.isfinite, self._shard_losses()))

    def _shard_losses(self) -> list[float]:
        """Return the loss sum of every part of the last step, in order. A synchronisation point."""
        return [loss for loss, _ in gather_sums(self._last, self._state.accelerator.device)]

    def _skip(self, step: int, norm: float) -> None:
        """Note a step whose gradient was not finite, or end all ranks. Every rank is here, at the same step."""
        progress, skipped = self._progress, self._progress.skipped_steps
        where = [
            f"the loss is {loss} {self._state.reducer.shard_name} {shard}"
            for shard, loss in enumerate(self._shard_losses())
            if not math.isfinite(loss)
        ]
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
