"""One attempt at a run, from loading the data to the summary. Every rank runs this, in the same order."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from accelerate import Accelerator

from trainlib.config import Config
from trainlib.data import load_data
from trainlib.data.batches.plan import to_steps
from trainlib.data.datasets.dataset import Dataset
from trainlib.distributed import process_group
from trainlib.distributed.checks.before_start import CHECK_SECONDS, check_devices, is_on_several_machines
from trainlib.distributed.checks.watchdog import Watchdog
from trainlib.distributed.consensus.channel import open_channel
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.distributed.process_group import broadcast_object
from trainlib.errors import UserError
from trainlib.models.own_parts.custom_parts import NO_CUSTOM_PARTS, CustomParts
from trainlib.runs.attempt.logs import attempt_header, redirect_output
from trainlib.runs.attempt.record import Attempt
from trainlib.runs.attempt.snapshot_folder import snapshot_folder
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.runs.directory import RunDirectory
from trainlib.runs.machine import launch_variables
from trainlib.runs.machine.agent_folder import make_agent_folder, remove_agent_folder
from trainlib.runs.records import reasons
from trainlib.runs.records.checkpoints import find_named
from trainlib.runs.records.reasons import EndCode, EndReason
from trainlib.training.build.training import build_inputs, build_training
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Checkpoint
from trainlib.training.checkpoints.content_record import ContentHook, forget_content, learn_content
from trainlib.training.checkpoints.provenance import record_data, require_alike, require_same_config, require_same_data
from trainlib.training.checkpoints.snapshots import newest_snapshot
from trainlib.training.checkpoints.space import checkpoint_size, space_problem
from trainlib.training.hooks import EndOfJobHook, HeartbeatHook, Hook, OwnershipHook, StepFileHook
from trainlib.training.session.final_test import TestResult, evaluate_test_split, write_test_evaluation
from trainlib.training.session.outputs import open_trainer, summary_of
from trainlib.training.trainer import Trainer, Training
from trainlib.training.tuning.feature_cache import cache_features

logger = logging.getLogger("trainlib")

BUILDING_SECONDS = 300.0  # at least: libraries are imported and weights read, which is no hang on a slow disk
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
    """Train until the end, or until asked to stop; return True at the end.

    start    rank 0: the checkpoint to resume from, if any; the other ranks get it from rank 0
    attempt  rank 0's record of how this attempt goes; None on the other ranks, which write nothing but their logs
    log      an open file, to which the watchdog writes the stacks of all threads if this rank hangs
    custom   model, data set, loss, hooks and the like of the user's own
    """
    is_main = attempt is not None
    process_group.check_device(config.train)
    if start is not None:
        require_same_config(config, start)
    agent_folder = make_agent_folder() if launch_variables.start_folder() is None else None
    dataset = load_data(
        config.data,
        config.seed,
        stop_requested=flag.requested,
        is_main=is_main,
        start_folder=launch_variables.start_folder() or agent_folder,
        own=custom.load_dataset(),
        tell_decoded=lambda done, total: _show_decoded(run, done, total),
    )
    if start is not None:
        require_same_data(run, start, dataset.listing)
    with process_group.joined(config.train) as accelerator:
        remove_agent_folder(agent_folder)  # all ranks have their data
        start = broadcast_object(start)
        _check_machines(run, accelerator, flag, log)
        require_alike(config, dataset.listing, custom.code())
        if start is not None:
            learn_content(run, dataset)
        training = _build(config, run, dataset, accelerator, start, custom, flag, log)
        _begin(config, run, attempt, start, dataset, accelerator)
        with Watchdog(config.train.hang_seconds, flag, log) as watchdog:
            hooks = [HeartbeatHook(watchdog.heartbeat), *custom.hooks]
            hooks += _hooks_of_the_run(run, dataset, flag, accelerator.process_index)
            with open_trainer(config, run, training, hooks, attempt, start, dataset, custom.code()) as trainer:
                at_step = _step_to_stop_at(training)
                completed = trainer.run(StopConsensus(flag, open_channel(config.train), at_step))
                summary = summary_of(trainer) if is_main else {}  # before the test, which loads the best weights
                result = evaluate_test_split(trainer, run, config) if completed else None
                if attempt is not None:
                    flag.requested()  # what was asked last may count most
                    attempt.reason = reasons.COMPLETED if completed else flag.reason or _unasked(training, at_step)
                    attempt.step = training.progress.step
                    _finish(run, trainer, attempt.reason, result, summary)
                    flag.acknowledge()
                    _tell_results(run, trainer, dataset, attempt, result, config.data.root)
    return completed


def _show_decoded(run: RunDirectory, done: int, total: int) -> None:
    run.pulse = lambda: {"phase": "decoding pictures", "decoded": done, "pictures": total}


def _step_to_stop_at(training: Training) -> int | None:
    """Return the step at which this start is to end; None where it is to train to the end."""
    duration = launch_variables.stop_at()
    return to_steps(duration, training.plan.steps_per_epoch) if duration else None


def _unasked(training: Training, at_step: int | None) -> EndReason:
    """Return why a run stopped where this rank was not asked to."""
    return reasons.RUNG if at_step is not None and training.progress.step >= at_step else reasons.OTHER_RANK


def _hooks_of_the_run(run: RunDirectory, dataset: Dataset, flag: StopFlag, rank: int) -> list[Hook]:
    """Return what watches the run itself: how far each rank is, its data, and on rank 0 its owner and its time."""
    hooks: list[Hook] = [*StepFileHook.from_environment(rank), ContentHook(run, dataset, rank)]
    if rank == 0:
        hooks += [OwnershipHook(run), *EndOfJobHook.from_environment(flag)]
    return hooks


def _build(
    config: Config,
    run: RunDirectory,
    dataset: Dataset,
    accelerator: Accelerator,
    start: Checkpoint | None,
    custom: CustomParts,
    flag: StopFlag,
    log: TextIO,
) -> Training:
    """Build all that is trained with; what frozen layers give is computed once, which may take long. A collective."""
    compiled = " and compiling" if config.train.compile else ""
    run.pulse = lambda: {"phase": f"building{compiled} the model"}
    inputs = build_inputs(config, dataset, accelerator, start, custom)
    hang_seconds = config.train.hang_seconds
    with Watchdog(hang_seconds and max(hang_seconds, BUILDING_SECONDS), flag, log) as watchdog:
        features = cache_features(inputs, start.step if start else 0, flag.requested, watchdog.heartbeat)
        training = build_training(inputs, start, custom, features, watchdog.heartbeat)
    _require_space(config, run, training)
    return training


def _require_space(config: Config, run: RunDirectory, training: Training) -> None:
    """Raise UserError, on every rank, if the disk has no room for two checkpoints; warn of less than all that stay."""
    is_main = training.state.accelerator.is_main_process
    size = checkpoint_size(training.state) if is_main else 0
    problem = broadcast_object(space_problem(run.checkpoints, size, config.checkpoint.keep) if is_main else None)
    if problem is None:
        return
    can_begin, text = problem
    if not can_begin:
        raise UserError(text)
    if is_main:
        logger.warning("%s", text)


def _begin(
    config: Config,
    run: RunDirectory,
    attempt: Attempt | None,
    start: Checkpoint | None,
    dataset: Dataset,
    accelerator: Accelerator,
) -> None:
    """Begin the attempt, which nothing refuses any more: only from here on, the run's files change. A collective.

    Rows are cut off later (`MetricsFile`), once the checkpoints that they led to are set aside. From here on, the other
    ranks write to their logs in the run directory.
    """
    header = ""
    if attempt is not None:
        run.begin(config)
        attempt.begin(run.next_attempt())
        checkpoint.remove_partial(run.checkpoints)
        checkpoint.set_aside_newer(run.checkpoints, start)
        if start is None:
            forget_content(run)
        record_data(run, dataset.listing)
        header = attempt_header(attempt.number, os.environ)
    header = broadcast_object(header)
    if attempt is None:
        _require_shared(run.logs)
        earlier = launch_variables.log_before_start()
        printed = earlier.read_text(errors="replace") if earlier is not None else ""
        redirect_output(run.logs / f"rank-{accelerator.process_index}.log", header + printed)


def _finish(
    run: RunDirectory, trainer: Trainer, reason: EndReason, result: TestResult | None, summary: dict[str, object]
) -> None:
    """Flush all rows, then write the summary, which says how the run ended."""
    trainer.hooks.on_checkpoint()  # all rows are safe then; no checkpoint is written here
    test = {"test": result.metrics.asdict() if result else None}
    run.write_summary({"status": reason.code.status} | summary | test)


def _tell_results(
    run: RunDirectory, trainer: Trainer, dataset: Dataset, attempt: Attempt, result: TestResult | None, root: str
) -> None:
    """Log how the attempt ended, and write the evaluation of the test split; `root` is `data.root`."""
    if result is None:
        goes_on = attempt.reason is not None and attempt.reason.code is EndCode.REGROUP
        after = "it goes on at once" if goes_on else "run it again to continue"
        logger.info("stopped at step %d (%s); %s", attempt.step, attempt.reason, after)
    else:
        metrics = result.metrics
        precision = "" if metrics.map is None else f", mean average precision {metrics.map:.4f},"
        logger.info("test accuracy %.4f%s on %d images (%s)", metrics.accuracy, precision, metrics.count, result.remark)
        write_test_evaluation(run, trainer, dataset, result, root)
    logger.info("results in %s", run.path)


def _check_machines(run: RunDirectory, accelerator: Accelerator, flag: StopFlag, log: TextIO) -> None:
    """Check that all machines share the run directory and, where there are several, that their devices compute rightly.

    A collective. Raises UserError and WrongDeviceError.
    """
    _require_shared(run.path / "lock")
    if is_on_several_machines():
        with Watchdog(CHECK_SECONDS, flag, log):
            check_devices(accelerator)


def _require_shared(path: Path) -> None:
    """Rank 0 has made this in the run directory; raise UserError where this rank, on another machine, cannot see it."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{path.parent.absolute()} is on rank 0's machine, but not on {socket.gethostname()}: start the run in "
                "a folder that all machines share"
            )
        time.sleep(0.2)


def choose_checkpoint(directory: Path, named: str | None) -> Checkpoint | None:
    """Return the named checkpoint, or the newest good one, or None for a new run.

    A snapshot counts as a checkpoint where the same launcher has started the run before.
    Raises CheckpointError when a named one is missing, damaged, or not of this run.
    """
    if named is None:
        newest = checkpoint.newest(directory)
        return newest_snapshot(snapshot_folder(), directory.parent, newest) or newest
    return checkpoint.verify(find_named(directory, named, "--resume"))
