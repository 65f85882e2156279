"""One attempt at a run, from loading the data to the summary. Every rank runs this, in the same order."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import torch
from accelerate import Accelerator

from trainlib.config import Config
from trainlib.data import load_data
from trainlib.data.dataset import Dataset
from trainlib.distributed import process_group
from trainlib.distributed.allreduce import elastic
from trainlib.distributed.channel import control_channel
from trainlib.distributed.stop_consensus import StopConsensus
from trainlib.distributed.watchdog import Watchdog
from trainlib.errors import CheckpointError, RunDirectoryError, TrainlaunchError, UserError
from trainlib.models.architectures.whitening import init_whitening
from trainlib.models.custom_parts import NO_CUSTOM_PARTS, CustomParts
from trainlib.models.optimizers.schedule import Schedule
from trainlib.runs import launch_variables, reasons
from trainlib.runs.attempts import Attempt
from trainlib.runs.checkpoints import find_named, name_of
from trainlib.runs.directory import RunDirectory
from trainlib.runs.logs import attempt_header, redirect_output
from trainlib.runs.stop_request import StopFlag
from trainlib.training.build import (
    build_classifier,
    build_data_module,
    build_loop_config,
    build_plan,
    build_preprocess,
    build_train_state,
    check_images,
)
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Checkpoint
from trainlib.training.metrics.clock import Clock
from trainlib.training.metrics.predictions import PredictionCollector, Predictions, describe, write_evaluation
from trainlib.training.metrics.progress import Progress
from trainlib.training.metrics.sums import Metrics
from trainlib.training.outputs import open_outputs, summary_of
from trainlib.training.step.train_step import warm_up
from trainlib.training.trainer import Outputs, Trainer
from trainlib.training.tuning.autotune import autotune
from trainlib.training.tuning.feature_cache import Features, Parts, cache_features

logger = logging.getLogger("trainlib")

SHARED_SECONDS = 10.0  # for a shared file system to show what another machine made


def run_session(
    config: Config,
    run: RunDirectory,
    flag: StopFlag,
    start: Checkpoint | None,
    attempt: Attempt | None,
    log: TextIO,
    custom: CustomParts = NO_CUSTOM_PARTS,
) -> bool:
    """Train until the end, or until asked to stop; True at the end.

    start    where to resume from, as rank 0 chose it
    attempt  rank 0's record of how this attempt goes; None on the other ranks, which write nothing but their logs
    log      for the stacks of a rank that hangs
    custom   parts that the configuration only names
    """
    process_group.check_precision(config.train)
    dataset = custom.dataset or load_data(config.data, stop_requested=flag.requested, is_main=attempt is not None)
    with process_group.joined(config.train) as accelerator:
        header = attempt_header(attempt.number, os.environ) if attempt else ""
        start, header = process_group.broadcast_object((start, header))
        if attempt is None:
            _require_shared(run)
            redirect_output(run.logs / f"rank-{accelerator.process_index}.log", header)
        if custom.dataset is not None:
            _require_same_data(config)

        def caching(parts: Parts) -> Features | None:
            with Watchdog(config.train.hang_seconds, flag, log) as watchdog:
                return cache_features(parts, start.step if start else 0, flag.requested, watchdog.heartbeat)

        trainer = build_trainer(config, dataset, accelerator, start, custom, caching)
        with (
            Watchdog(config.train.hang_seconds, flag, log) as watchdog,
            open_outputs(config, run, trainer, dataset, attempt, start)
            if attempt
            else nullcontext(Outputs()) as outputs,
        ):
            heartbeat = _stopping_in_time(trainer.clock, flag, watchdog.heartbeat) if attempt else watchdog.heartbeat
            trainer.outputs = replace(outputs, heartbeat=heartbeat)
            if attempt:
                if start is not None:
                    checkpoint.set_aside_newer(run.checkpoints, start)
                run.begin(config)
            completed = trainer.run(StopConsensus(flag, control_channel(config.train)))
            summary = summary_of(trainer) if attempt else {}
            test = _test(trainer, run, config) if completed else None
            if attempt:
                attempt.step = trainer.progress.step
                attempt.reason = reasons.COMPLETED if completed else flag.reason or reasons.OTHER_RANK
                trainer.flush_rows()  # before the summary, which says that this run is complete
                tested = {"test": test.metrics.asdict() if test else None}
                run.write_summary({"status": attempt.reason.code.status} | summary | tested)
                flag.acknowledge()
                if test is None:
                    logger.info("stopped at step %d (%s); run it again to continue", attempt.step, attempt.reason)
                else:
                    metrics = test.metrics
                    logger.info("test accuracy %.4f on %d images (%s)", metrics.accuracy, metrics.count, test.remark)
                    _write_evaluation(run, trainer, dataset, test)
                logger.info("results in %s", run.path)
    return completed


def _stopping_in_time(clock: Clock, flag: StopFlag, heartbeat: Callable[[], None]) -> Callable[[], None]:
    """The same beat, which also asks the run to stop while its checkpoint still fits before the end of its job."""
    end_time = launch_variables.job_end_time()
    if end_time is None:
        return heartbeat

    def beat_until_the_end() -> None:
        heartbeat()
        if clock.time_is_up(end_time - time.time()):
            flag.ask(reasons.END_TIME)

    return beat_until_the_end


def _require_shared(run: RunDirectory) -> None:
    """Rank 0 has made the run directory; raise UserError where this rank, on another machine, cannot see it."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not run.logs.is_dir():
        if time.monotonic() > deadline:
            raise UserError(
                f"{run.path.absolute()} is on rank 0's machine, but not on {socket.gethostname()}: start the run in a "
                "folder that all machines share"
            )
        time.sleep(0.2)


def _require_same_data(config: Config) -> None:
    """Raise UserError on a rank whose data set, which the user's own code made, is not rank 0's. A collective."""
    expected = process_group.broadcast_object(config.data.name)
    if config.data.name != expected:
        raise UserError(
            f"dataset: this rank made {config.data.name} and rank 0 made {expected}, must be the same on all ranks: "
            "seed what draws random numbers on the way"
        )


def choose_checkpoint(directory: Path, named: str | None) -> Checkpoint | None:
    """The named checkpoint, or the newest good one, or None for a new run.

    Raises CheckpointError when a named one is missing, damaged, or not of this run.
    """
    checkpoint.remove_partial(directory)
    if named is None:
        return checkpoint.newest(directory)
    return checkpoint.verify(find_named(directory, named, "--resume"))


def build_trainer(
    config: Config,
    dataset: Dataset,
    accelerator: Accelerator,
    start: Checkpoint | None,
    custom: CustomParts = NO_CUSTOM_PARTS,
    caching: Callable[[Parts], Features | None] = lambda parts: None,
) -> Trainer:
    """All parts of the run, in the state that `start` holds. Its outputs are still to be set.

    caching   how what frozen layers give is computed once; not, where a few steps are only looked at
    """
    if config.train.reproducibility == "elastic":
        elastic.require_alike(config.train.virtual_shards, accelerator, start.manifest if start else None)
    num_classes = len(dataset.class_names)
    plan, val_ids = build_plan(config, len(dataset.train.labels_N))
    if start is not None and start.step > plan.total_steps:
        raise RunDirectoryError(
            f"{config.name} has already trained {start.step} steps, and this configuration ends at {plan.total_steps}; "
            "raise train.epochs or train.steps"
        )
    # Published weights are fetched by one process of each machine; a checkpoint needs none of them.
    with accelerator.local_main_process_first() if config.model.weights and not start else nullcontext():
        classifier = build_classifier(
            config, num_classes, accelerator.device, with_weights=start is None, custom=custom.model
        )
    check_images(classifier, config, plan, num_classes, accelerator.num_processes)
    if start is not None:
        try:
            classifier.module.load_state_dict(start.model_state())
        except RuntimeError as error:  # a given model of the same name may have become another one
            raise CheckpointError(f"{start.path} does not fit the model: {error}") from error
    elif config.model.weights is None:  # a file of weights brings the whitening that they were trained with
        init_whitening(classifier.module, dataset.train.images, plan.ids_N, build_preprocess(config, dataset))
    samples = build_data_module(config, dataset, val_ids, accelerator)
    features = caching(Parts(config, classifier, plan, samples, accelerator))
    if features is not None:
        samples = replace(samples, train=features.batches)
    trained = features.trained if features is not None else None
    state = build_train_state(config, num_classes, accelerator, classifier, custom.loss, trained)
    warm_up(state, samples.train.dummy_input())
    schedule = Schedule(
        config.scheduler,
        state.stepping,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
    )
    rank_slice = samples.train.rank_slice
    progress = Progress.at_start(rank_slice.num_shards)
    if start is not None:
        saved = start.trainer_state()
        state.load_state(saved["optimizer"], saved["scaler"])
        if state.ema is not None:
            state.ema.load_state_dict(saved)
        schedule.load_state_dict(saved["schedule"])
        progress = Progress.from_state(saved["progress"], rank_slice.shards, rank_slice.num_shards)
    autotune(config.train, state, samples, progress, plan.total_steps)
    return Trainer(state, plan, schedule, samples, build_loop_config(config, plan.steps_per_epoch), Outputs(), progress)


@dataclass(frozen=True)
class TestResult:
    """How the test went, and with which weights.

    weights   "best" or "last"; those of `step`
    remark    the same for people
    """

    metrics: Metrics
    predictions: Predictions
    step: int
    weights: str
    remark: str


def _test(trainer: Trainer, run: RunDirectory, config: Config) -> TestResult:
    """The test split, once, with the best weights where there are some, else with the last."""
    progress, accelerator = trainer.progress, trainer.state.accelerator
    if trainer.state.ema is not None:
        trainer.state.ema.swap_in()  # training is over: the average is what it leaves
    best = progress.best
    if best is not None and best["step"] != progress.step:
        chosen = process_group.broadcast_object(_find_best(run, best["step"]) if accelerator.is_main_process else None)
        if chosen is not None:
            trainer.state.classifier.module.load_state_dict(chosen.model_state())
        else:
            best = None
    collector = PredictionCollector(config.loss, accelerator.device)
    metrics = trainer.test(collector.add)
    return TestResult(
        metrics=metrics,
        predictions=collector.gathered(),
        step=best["step"] if best else progress.step,
        weights="best" if best else "last",
        remark=(f"best weights, epoch {best['epoch']}" if best else "last weights")
        + (f"; stopped early after epoch {trainer.epoch}" if progress.ended_early else ""),
    )


def _write_evaluation(run: RunDirectory, trainer: Trainer, dataset: Dataset, test: TestResult) -> None:
    """evaluation-test.json; the run is complete without it, so a failure only warns."""
    source = {"split": "test", "step": test.step, "weights": test.weights}
    ids_N = torch.arange(len(dataset.test.labels_N))
    try:
        evaluation = describe(test.predictions, trainer.samples.test, ids_N, dataset.class_names, test.metrics, source)
        write_evaluation(run.path, evaluation)
    except (OSError, TrainlaunchError) as error:
        logger.warning("the evaluation was not written (%s); `launch eval %s` makes it again", error, run.path.name)


def _find_best(run: RunDirectory, step: int) -> Checkpoint | None:
    """The best checkpoint; None, with a warning, where its write failed or it was damaged since."""
    try:
        return checkpoint.verify(run.checkpoints / name_of(step))
    except CheckpointError as error:
        logger.warning("the best weights are lost (%s); the last ones are tested instead", error)
        return None
