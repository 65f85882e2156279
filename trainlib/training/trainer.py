"""The training loop. It knows only steps: durations were turned into steps before it starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainlib.config import Best, EarlyStopping
from trainlib.data.batches.loader import BatchLoader, DataModule, MicroBatch
from trainlib.data.batches.plan import Plan
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.errors import TrainlaunchError
from trainlib.models.optimizers.schedule import Schedule
from trainlib.runs.files.json_records import timestamp
from trainlib.training.checkpoints.interval import CheckpointInterval
from trainlib.training.checkpoints.manager import CheckpointManager, hand_over
from trainlib.training.checkpoints.snapshots import Snapshots, SnapshotWriter
from trainlib.training.hooks import Hook, HookList
from trainlib.training.metrics.clock import Clock
from trainlib.training.metrics.progress import Progress
from trainlib.training.metrics.sums import Metrics, empty_sums, gather_sums, metrics_of
from trainlib.training.step.accumulator import MetricAccumulator
from trainlib.training.step.evaluate import OnBatch, evaluate
from trainlib.training.step.graph import GraphSteps
from trainlib.training.step.stages import enter_stage
from trainlib.training.step.state import TrainState
from trainlib.training.step.train_step import StepResult
from trainlib.training.step.update import UpdateStatus
from trainlib.training.tuning import memory

logger = logging.getLogger("trainlib")

_NOTHING: OnBatch = lambda micro_batch, logits_NC: None  # noqa: E731


@dataclass(frozen=True)
class LoopConfig:
    """When things happen, in steps, and what counts as better."""

    log_every: int
    log_grad_norm: bool
    checkpoint_every: int | None  # None: as its cost and the failures so far make best
    best: Best | None
    early_stopping: EarlyStopping | None
    on_nonfinite: str
    max_nonfinite_steps: int


@dataclass(frozen=True)
class Training:
    """All that a run trains with, in the state of the checkpoint that it goes on from, or at its beginning.

    state      model, loss and optimizer
    plan       which samples each step trains on, and how many steps there are
    schedule   the learning rate of each step
    samples    the training, validation and test images
    progress   how far the run has come; changes as it trains
    graph      replays steps; None where all of them run eagerly
    """

    state: TrainState
    plan: Plan
    schedule: Schedule
    samples: DataModule
    progress: Progress
    loop_config: LoopConfig
    graph: GraphSteps | None = None


class Trainer:
    """Trains from where `progress` stands to the end of the plan, or until asked to stop.

    hooks         observers of the training; the docstring of `Hook` shows the loop
    checkpoints   where checkpoints are written: on rank 0; None writes none
    snapshots     where the state is kept in memory, for the next start; None without a launcher that starts it
    """

    def __init__(
        self,
        training: Training,
        hooks: Sequence[Hook] = (),
        checkpoints: CheckpointManager | None = None,
        snapshots: Snapshots | None = None,
    ):
        self.state, self.plan, self.schedule = training.state, training.plan, training.schedule
        self.samples, self.progress, self.loop_config = training.samples, training.progress, training.loop_config
        self.graph = training.graph
        self.hooks, self.checkpoints, self.snapshots = HookList(hooks), checkpoints, snapshots
        self.clock = Clock(self.progress.seconds)
        self.accumulator = MetricAccumulator(
            self.state, self.progress, self.loop_config.on_nonfinite, self.loop_config.max_nonfinite_steps
        )
        failures = checkpoints.failures if checkpoints is not None else 0
        self._interval = CheckpointInterval(self.loop_config.checkpoint_every, self.progress.step, failures)
        has_none = snapshots is not None and snapshots.is_start
        self._saved_step = None if has_none else self.progress.step or None  # of the checkpoint resumed from

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.progress.step // self.plan.steps_per_epoch

    @property
    def finished(self) -> bool:
        """True at the end of the plan, and where training ended early."""
        return self.progress.step >= self.plan.total_steps or self.progress.ended_early

    def run(self, stop: StopConsensus, *, until: int | None = None) -> bool:
        """Train; return True at the end, False where the ranks stopped before it.

        until   stop after this many steps, without writing a checkpoint: used to examine a part of a run. Without it,
                a checkpoint is on disk when this returns
        """
        self.hooks.on_start(self)
        self.clock.start()
        stopped = stop.has_reached_end(self.progress.step)
        if stopped and self._saved_step != self.progress.step:
            self._save(must=True)
        while not (self.finished or stopped):
            stopped = self._run_epoch(self.plan.epoch_of(self.progress.step), stop, until)
        stop.drain()  # receive what other ranks have sent already, so that nothing is left in the sockets
        self.hooks.on_stop(self)
        return self.finished

    def test(self, on_batch: OnBatch = _NOTHING, thresholds: Sequence[float] | None = None) -> Metrics:
        """Evaluate the test split and record its row; `on_batch` sees the logits of each micro-batch.

        thresholds   of the classes, where samples have sets of them
        """
        test = self.samples.test
        self.state = self.state.with_whole_model()
        metrics, speed = self._evaluate(test, torch.arange(len(test.labels_N)), on_batch, thresholds)
        epoch = self.plan.epoch_of(max(self.progress.step - 1, 0))
        self._record("test", epoch, self.schedule.lr, metrics, images_per_second=speed)
        return metrics

    def _run_epoch(self, epoch: int, stop: StopConsensus, until: int | None) -> bool:
        """Train the rest of this epoch; return True if the run must stop before its end (asked, or `until`)."""
        plan, progress, train = self.plan, self.progress, self.samples.train
        first = progress.step % plan.steps_per_epoch
        steps = slice(first, first + plan.total_steps - progress.step)
        batches, draws = (of_epoch[steps] for of_epoch in plan.batches_and_draws(epoch))
        denominators = map(self.state.objective.denominator, train.labels_of(batches))
        augmentation, graph = self.samples.augmentation, self.graph
        if graph is not None:
            prepared = train.raw_batches(batches, epoch, augmentation, draws)
        else:
            prepared = train.train_batches(batches, epoch, augmentation, draws, first_step=progress.step)
        fetched = self.state.pace.fetched(prepared)
        for ids_N, denominator, micro_batches in zip(batches, denominators, fetched, strict=True):
            enter_stage(self.state, progress.step, train)
            lr = self.schedule.lr
            result = memory.step_that_fits(self.state, progress, micro_batches, denominator, graph)
            self.accumulator.add(progress.step, result)
            progress.step += 1
            if result.status is not UpdateStatus.SKIPPED:
                self.schedule.after_step()
                self.state.ema.update()
            self.clock.count(len(ids_N))
            self.hooks.on_progress()
            if self._end_step(epoch, lr, denominator, len(ids_N), result):
                return False  # finished, which is not stopped
            if progress.step == until:
                return True
            if stop.agreed(progress.step):
                self._save(must=True)
                return True
        return False

    def _end_step(self, epoch: int, lr: float, denominator: float, count: int, result: StepResult) -> bool:
        """Do what is due at a step boundary, in this fixed order; return True at the end of training.

        The row of the step; the end of the epoch: its row, evaluation, schedule, early stopping; a checkpoint; then the
        hooks. Rows come before the checkpoint that they lead to, so that a resumed run has each of them once.
        """
        progress, plan = self.progress, self.plan
        self.state.pace.pause()  # ranks wait for each other here, and rank 0 does what others do not
        if progress.step % self.loop_config.log_every == 0:
            self._record_step(epoch, lr, denominator, count, result.grad_norm)
        is_best = False
        if plan.ends_epoch(progress.step - 1) or progress.step == plan.total_steps:
            is_best = self._end_epoch(epoch, lr)
        if is_best or self.finished or self._interval.is_due(progress.step):
            self._save(must=self.finished)
        elif self.snapshots is not None:
            self.snapshots.take_if_due(progress.step, self.clock, self._hand_over)
        self.state.pace.resume()
        self.hooks.on_step_end(self, result)
        return self.finished

    def _end_epoch(self, epoch: int, lr: float) -> bool:
        """Record the epoch, evaluate, advance the schedule; return True where this evaluation is the best so far.

        A run of `train.steps` may end inside an epoch: then the row tells of the part that was trained.
        """
        self.accumulator.read()
        plan, progress, samples = self.plan, self.progress, self.samples
        train = self._epoch_metrics(epoch)
        self._record("train", epoch, lr, train, scope="epoch", images_per_second=self.clock.images_per_second)
        self.clock.new_window()
        metrics = train.named("train")
        if len(samples.val_ids):
            val, speed = self._evaluate(samples.train, samples.val_ids)  # some of the training set's images
            self._record("val", epoch, lr, val, images_per_second=speed)
            metrics |= val.named("val")
            progress.thresholds = list(val.thresholds) if val.thresholds else None
        if plan.ends_epoch(progress.step - 1):
            progress.sums = empty_sums(len(progress.sums))
            self.schedule.after_epoch(metrics)
        is_best = progress.record_metrics(metrics, epoch + 1, self.loop_config.best, self.loop_config.early_stopping)
        self.hooks.on_epoch_end(self, metrics)
        return is_best

    def _epoch_metrics(self, epoch: int) -> Metrics:
        """Return loss and accuracy over the samples of this epoch that were trained on so far. A collective."""
        progress, train = self.progress, self.samples.train
        counted = [
            ids_N
            for step, ids_N in enumerate(self.plan.batches(epoch), epoch * self.plan.steps_per_epoch)
            if step < progress.step and step not in progress.skipped_steps
        ]
        labels_N = train.labels_N[torch.cat([torch.empty(0, dtype=torch.int64), *counted])]
        denominator = self.state.objective.denominator(labels_N)
        return metrics_of(gather_sums(progress.sums, self.state.accelerator.device), denominator, len(labels_N))

    def _evaluate(
        self,
        loader: BatchLoader,
        ids_N: Tensor,
        on_batch: OnBatch = _NOTHING,
        thresholds: Sequence[float] | None = None,
    ) -> tuple[Metrics, float]:
        """Return the metrics of these samples, by the EMA of the weights where there is one, and images per second."""

        def report_progress(micro_batch: MicroBatch, logits_NC: Tensor) -> None:
            self.hooks.on_progress()
            on_batch(micro_batch, logits_NC)

        size = self.samples.eval_batch_size
        if self.progress.fitting is not None:  # images at a time in training, which takes more memory
            size = min(size, 2 * self.progress.fitting)
        with self.clock.paused() as pause, self.state.ema.swapped_in():
            metrics = evaluate(self.state, loader, ids_N, size, report_progress, thresholds)
        return metrics, len(ids_N) / pause.seconds

    def _record_step(self, epoch: int, lr: float, denominator: float, count: int, grad_norm: Tensor) -> None:
        """Record the row of one step; a synchronisation point, and a collective."""
        own, pace, num_shards = self.accumulator.read(), self.state.pace, len(self.progress.sums)
        sums = gather_sums([*own, *pace.rows()], self.state.accelerator.device)
        speed, slow = self.clock.images_per_second, pace.judge(sums[num_shards:])
        more: dict[str, Any] = {"grad_norm": grad_norm.item()} if self.loop_config.log_grad_norm else {}
        more |= {"slow": slow} if slow else {}
        metrics = metrics_of(sums[:num_shards], denominator, count)
        self._record("train", epoch, lr, metrics, scope="step", images_per_second=speed, **more)

    def _record(
        self, split: str, epoch: int, lr: float, metrics: Metrics, *, scope: str | None = None, **more: Any
    ) -> None:
        """Give a row of metrics.jsonl to the hooks; those of the training are counted, for every checkpoint to tell."""
        if split != "test" and self.progress.num_rows is not None:
            self.progress.num_rows += 1
        row: dict[str, Any] = {"time": timestamp(), "step": self.progress.step, "epoch": epoch + 1, "split": split}
        row |= {"scope": scope} if scope else {}
        self.hooks.on_row(row | metrics.asdict() | {"lr": lr} | more)

    def _save(self, *, must: bool = False) -> None:
        """Checkpoint the state between two steps, once for each step. Every rank takes part, rank 0 writes.

        must    wait until this step's checkpoint is on disk, also where checkpoints are written in the background
        Raises TrainlaunchError, on every rank, if it is not, or if too many in a row could not be written.
        """
        problem, began = None, time.perf_counter()
        with self.clock.paused() as pause:
            if self._saved_step != self.progress.step:
                self._hand_over(self.checkpoints)
                self._saved_step = self.progress.step
            if self.checkpoints is not None:
                problem = self.checkpoints.problem(must_have=self.progress.step if must else None)
            problem = self._interval.agree(problem, self.progress.step, self.clock, began)
        self.clock.saved(pause)
        if problem is not None:
            raise TrainlaunchError(problem)

    def _hand_over(self, writer: CheckpointManager | SnapshotWriter | None) -> None:
        """Give the whole state to what writes it, on rank 0. A collective."""
        self.accumulator.read()
        self.progress.seconds = self.clock.seconds
        hand_over(self.state, self.schedule, self.progress, writer, self.hooks.on_checkpoint)
