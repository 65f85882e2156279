"""The training loop.

It knows only steps: durations were turned into steps before it starts. At each step boundary, in this order: the row of
the step, the end of an epoch (its row, evaluation, schedule, early stopping), a checkpoint, and whether to stop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainlib.config import Best, EarlyStopping
from trainlib.data.batches.loader import BatchLoader, DataModule, MicroBatch
from trainlib.data.batches.plan import Plan
from trainlib.distributed.allreduce.elastic import require_same_state
from trainlib.distributed.process_group import broadcast_object
from trainlib.distributed.stop_consensus import StopConsensus
from trainlib.errors import TrainlaunchError
from trainlib.models.optimizers.schedule import Schedule
from trainlib.runs.files import timestamp
from trainlib.training.checkpoints.manager import CheckpointManager
from trainlib.training.metrics.clock import Clock
from trainlib.training.metrics.progress import Progress
from trainlib.training.metrics.sums import Metrics, empty_sums, gather_sums, metrics_of
from trainlib.training.step.accumulator import MetricAccumulator
from trainlib.training.step.evaluate import OnBatch, evaluate
from trainlib.training.step.state import TrainState
from trainlib.training.step.train_step import StepResult, train_step
from trainlib.training.tracking import Tracker, log_all
from trainlib.training.tracking.console import Console
from trainlib.training.tuning import memory

logger = logging.getLogger("trainlib")


@dataclass(frozen=True)
class LoopConfig:
    """When things happen, in steps, and what counts as better."""

    log_every: int
    log_grad_norm: bool
    checkpoint_every: int
    best: Best | None
    early_stopping: EarlyStopping | None
    on_nonfinite: str
    max_nonfinite_steps: int


@dataclass(frozen=True)
class Outputs:
    """Where the results go; on ranks other than 0, nowhere but to the watchdog."""

    trackers: Sequence[Tracker] = ()
    console: Console | None = None
    checkpoint_manager: CheckpointManager | None = None
    heartbeat: Callable[[], None] = lambda: None  # tells the watchdog that something was achieved


class Trainer:
    """Trains from where `progress` stands to the end of the plan, or until asked to stop."""

    def __init__(
        self,
        state: TrainState,
        plan: Plan,
        schedule: Schedule,
        samples: DataModule,
        loop_config: LoopConfig,
        outputs: Outputs,
        progress: Progress,
    ):
        self.state = state
        self.plan = plan
        self.schedule = schedule
        self.samples = samples
        self.loop_config = loop_config
        self.outputs = outputs
        self.progress = progress
        self._saved_step = progress.step if progress.step else None
        self.accumulator = MetricAccumulator(state, progress, loop_config.on_nonfinite, loop_config.max_nonfinite_steps)
        self.clock = Clock(progress.seconds)

    def run(self, consensus: StopConsensus) -> bool:
        """Train. True at the end, False when the ranks agreed to stop before it; a checkpoint is safe either way."""
        self.clock.start()
        asked_to_stop = False
        while not (self.finished or asked_to_stop):
            asked_to_stop = self._run_epoch(self.plan.epoch_of(self.progress.step), consensus)
        consensus.drain()
        return not asked_to_stop

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.progress.step // self.plan.steps_per_epoch

    @property
    def device(self) -> torch.device:
        device: torch.device = self.state.accelerator.device
        return device

    @property
    def finished(self) -> bool:
        return self.progress.step >= self.plan.total_steps or self.progress.ended_early

    def _run_epoch(self, epoch: int, consensus: StopConsensus) -> bool:
        """Train the rest of this epoch. True when the ranks agreed to stop inside it."""
        plan, progress, loop_config = self.plan, self.progress, self.loop_config
        first = progress.step % plan.steps_per_epoch
        batches = plan.batches(epoch)[first : first + plan.total_steps - progress.step]
        denominators = map(self.state.objective.denominator, self.samples.train.labels_of(batches))
        prepared = self.samples.train.train_batches(batches, epoch, self.samples.augmentation)
        for ids_N, denominator, micro_batches in zip(batches, denominators, prepared, strict=True):
            lr = self.schedule.lr
            result = self._train_step(micro_batches, denominator)
            self.accumulator.add(progress.step, result)
            progress.step += 1
            if result.applied is not False:
                self.schedule.after_step()
                if self.state.ema is not None:
                    self.state.ema.update()
            self.clock.count(len(ids_N))
            self.outputs.heartbeat()

            if progress.step % loop_config.log_every == 0:
                self._log_step(epoch, lr, denominator, len(ids_N), result.grad_norm)
            is_best = False
            if plan.ends_epoch(progress.step - 1) or progress.step == plan.total_steps:
                is_best = self._end_epoch(epoch, lr)
            if is_best or self.finished or progress.step % loop_config.checkpoint_every == 0:
                self._save(must=self.finished)
            if self.outputs.console is not None:
                self.outputs.console.step(progress.step)
            if self.finished:
                return False
            if consensus.agreed():
                self._save(must=True)
                return True
        return False

    def _train_step(self, micro_batches: Sequence[MicroBatch], denominator: float) -> StepResult:
        """The step, in pieces as small as the device's memory asks for; so are those of all steps after it."""
        progress = self.progress
        while True:
            with suppress(torch.OutOfMemoryError):
                return train_step(self.state, progress.step, memory.cut(micro_batches, progress.fitting), denominator)
            progress.fitting = memory.smaller(micro_batches, progress.fitting, self.state)

    def _end_epoch(self, epoch: int, lr: float) -> bool:
        """Report the epoch, evaluate, advance the schedule; returns whether this evaluation is the best so far.

        A run of `train.steps` may end inside an epoch: then the row tells of the part that was trained.
        """
        self.accumulator.read()
        plan, progress, samples = self.plan, self.progress, self.samples
        whole = plan.ends_epoch(progress.step - 1)
        first = epoch * plan.steps_per_epoch
        counted = [
            ids_N
            for step, ids_N in enumerate(plan.batches(epoch), first)
            if step < progress.step and step not in progress.skipped_steps
        ]
        labels_N = samples.train.labels_N[torch.cat([torch.empty(0, dtype=torch.int64), *counted])]
        denominator = self.state.objective.denominator(labels_N)
        train = metrics_of(gather_sums(progress.sums, self.device), denominator, len(labels_N))
        self._log("train", epoch, lr, train, scope="epoch", images_per_second=self.clock.images_per_second)
        self.clock.new_window()
        metrics = {"train/loss": train.loss, "train/accuracy": train.accuracy}
        if len(samples.val_ids):
            val, speed = self._evaluate(samples.train, samples.val_ids)
            self._log("val", epoch, lr, val, images_per_second=speed)
            metrics |= {"val/loss": val.loss, "val/accuracy": val.accuracy}
        if whole:
            progress.sums = empty_sums(len(progress.sums))
            self.schedule.after_epoch(metrics)
        return progress.record_metrics(metrics, epoch + 1, self.loop_config.best, self.loop_config.early_stopping)

    def test(self, on_batch: OnBatch = lambda micro_batch, logits_NC: None) -> Metrics:
        """Evaluate the test split, and report it; `on_batch` sees each piece's logits."""
        test = self.samples.test
        self.state = self.state.with_whole_model()
        metrics, speed = self._evaluate(test, torch.arange(len(test.labels_N)), on_batch)
        epoch = self.plan.epoch_of(max(self.progress.step - 1, 0))
        self._log("test", epoch, self.schedule.lr, metrics, images_per_second=speed)
        return metrics

    def _evaluate(
        self, batches: BatchLoader, ids_N: Tensor, on_batch: OnBatch = lambda micro_batch, logits_NC: None
    ) -> tuple[Metrics, float]:
        """The metrics of these samples, by the averaged weights where there are any, and how many it were a second."""

        def beat_and_pass_on(micro_batch: MicroBatch, logits_NC: Tensor) -> None:
            self.outputs.heartbeat()
            on_batch(micro_batch, logits_NC)

        with self.clock.paused() as pause, self.state.ema_weights():
            metrics = evaluate(self.state, batches, ids_N, self.samples.eval_batch_size, beat_and_pass_on)
        return metrics, len(ids_N) / pause.seconds

    def _log_step(self, epoch: int, lr: float, denominator: float, count: int, grad_norm: Tensor) -> None:
        metrics = metrics_of(gather_sums(self.accumulator.read(), self.device), denominator, count)
        speed = self.clock.images_per_second
        more = {"grad_norm": grad_norm.item()} if self.loop_config.log_grad_norm else {}
        self._log("train", epoch, lr, metrics, scope="step", images_per_second=speed, **more)

    def _log(
        self, split: str, epoch: int, lr: float, metrics: Metrics, *, scope: str | None = None, **numbers: float
    ) -> None:
        row: dict[str, Any] = {"time": timestamp(), "step": self.progress.step, "epoch": epoch + 1, "split": split}
        row |= {"scope": scope} if scope else {}
        row |= {"loss": metrics.loss, "accuracy": metrics.accuracy, "count": metrics.count}
        log_all(self.outputs.trackers, row | {"lr": lr} | numbers)

    def _save(self, *, must: bool = False) -> None:
        """Checkpoint the state between two steps, once for each step. Every rank takes part, rank 0 writes.

        must    it has to be safe on return, also where checkpoints are written in the background
        Raises TrainlaunchError, on every rank, when such a one, or too many in a row, could not be written.
        """
        progress, checkpoint_manager = self.progress, self.outputs.checkpoint_manager
        problem = None
        with self.clock.paused() as pause:
            if self._saved_step != progress.step:
                self.accumulator.read()
                self._require_same_state()
                progress.seconds = self.clock.seconds
                gathered = progress.state_dict(self.device)
                if checkpoint_manager is not None:
                    best_step = progress.best["step"] if progress.best else None
                    with self.state.ema_weights():
                        model, trainer = self.state.classifier.module.state_dict(), self._trainer_state(gathered)
                        checkpoint_manager.save(progress.step, model, trainer, best_step, self.flush_rows)
                self._saved_step = progress.step
            if checkpoint_manager is not None:
                problem = checkpoint_manager.problem(must_have=progress.step if must else None)
            problem = broadcast_object(problem)
        self.clock.saved(pause)
        if problem is not None:
            raise TrainlaunchError(problem)

    def _require_same_state(self) -> None:
        """In elastic mode: of the weights, and of their average."""
        module = self.state.classifier.module
        if self.state.elastic is not None:
            require_same_state(module)
            if self.state.ema is not None:
                with self.state.ema_weights():
                    require_same_state(module)

    def _trainer_state(self, progress: dict[str, Any]) -> dict[str, Any]:
        ema = self.state.ema
        return {
            "progress": progress,
            "optimizer": self.state.optimizer.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.state.scaler_state(),
            **(ema.state_dict() if ema is not None else {}),
        }

    def flush_rows(self) -> None:
        """Make the rows so far safe; OSError where they cannot be written."""
        for tracker in self.outputs.trackers:
            tracker.flush()
