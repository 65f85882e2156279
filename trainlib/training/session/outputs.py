"""The outputs of rank 0: the hooks that record the run, the checkpoint manager, environment.json and summary.json."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch

from trainlib.config import Config, dump_config, own_name
from trainlib.config.libraries.timm_models import packages_of
from trainlib.data.batches.plan import to_steps
from trainlib.data.datasets.dataset import Dataset
from trainlib.distributed.devices import hardware
from trainlib.models.losses import is_balanced
from trainlib.models.weights.files import weights_sha256
from trainlib.runs.attempt.record import Attempt, count_failures, read_attempts
from trainlib.runs.attempt.snapshot_folder import snapshot_folder
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.machine import environment
from trainlib.runs.records.rows import EVALUATION_NUMBERS
from trainlib.training.checkpoints.checkpoint import Checkpoint
from trainlib.training.checkpoints.manager import CheckpointManager
from trainlib.training.checkpoints.snapshots import Snapshots, SnapshotWriter
from trainlib.training.checkpoints.space import checkpoint_size
from trainlib.training.hooks import Hook, TrackerHook
from trainlib.training.hooks.gpu_load import GpuLoad
from trainlib.training.hooks.health import HealthHook
from trainlib.training.hooks.pulse import Pulse
from trainlib.training.hooks.tracking import Trackers, open_trackers
from trainlib.training.hooks.tracking.console import Console
from trainlib.training.trainer import Trainer, Training

logger = logging.getLogger("trainlib")


@contextmanager
def open_trainer(
    config: Config,
    run: RunDirectory,
    training: Training,
    hooks: Sequence[Hook],
    attempt: Attempt | None,
    start: Checkpoint | None,
    dataset: Dataset,
    own_code: str = "",
) -> Iterator[Trainer]:
    """Make the trainer of this rank, rank 0's with the files, trackers and console that record the run.

    attempt   rank 0's record of how the attempt goes; None on other ranks
    own_code  of parts given in Python
    hooks     of this rank, which follow those that record the run

    On exit, also after an error, close all hooks, and record how far the attempt came.
    """
    if attempt is None:
        with _closing(hooks):
            yield Trainer(training, hooks, snapshots=_open_snapshots(training, start))
        return
    accelerator, packages = training.state.accelerator, packages_of(config.model.name)
    facts = hardware.describe(accelerator.device, accelerator.num_processes, *packages)
    facts["code"] = environment.with_own_code(facts["code"], own_code)
    write_atomically(run.environment_file, json.dumps(facts, indent=2) + "\n")
    _announce(config, training, facts, start)
    manifest = _manifest(config, training, dataset, facts)
    recording, trackers = _recording_hooks(config, run, training, manifest["config"] | {"environment": facts})
    checkpoints = CheckpointManager(
        run.checkpoints,
        config.checkpoint.keep,
        manifest,
        background=config.checkpoint.background,
        failures=count_failures(read_attempts(run.path)),
        require_own=run.require_own,
    )
    snapshots = _open_snapshots(training, start, manifest | {"attempt": attempt.number})
    trainer = Trainer(training, [*recording, *hooks], checkpoints, snapshots)
    with ExitStack() as at_exit:
        at_exit.callback(trackers.close)
        at_exit.enter_context(_closing([*recording, *hooks]))
        at_exit.callback(checkpoints.close)
        if snapshots is not None:
            at_exit.callback(snapshots.close)
        try:
            yield trainer
        except BaseException:
            with suppress(Exception):  # a broken device or a full disk must not hide the error itself
                run.write_summary({"status": "failed"} | summary_of(trainer) | {"test": None})
            raise
        finally:
            attempt.step = training.progress.step


def _open_snapshots(
    training: Training, start: Checkpoint | None, facts: dict[str, Any] | None = None
) -> Snapshots | None:
    """Return what takes snapshots, where the launcher of this process keeps them; None elsewhere.

    facts   on rank 0, which writes them: for their manifests
    """
    folder = snapshot_folder()
    if folder is None:
        return None
    step, is_start = training.progress.step, start is not None and start.is_snapshot
    writer = None if facts is None else SnapshotWriter(folder, step, checkpoint_size(training.state), facts)
    return Snapshots(step, writer, is_start=is_start)


@contextmanager
def _closing(hooks: Sequence[Hook]) -> Iterator[None]:
    """Close all hooks on exit, whatever one of them raises."""
    with ExitStack() as at_exit:
        for hook in reversed(hooks):
            at_exit.callback(hook.close)
        yield


def summary_of(trainer: Trainer) -> dict[str, Any]:
    """Return what summary.json says of the training itself."""
    progress = trainer.progress
    with trainer.state.ema.swapped_in():
        digest = weights_sha256(trainer.state.classifier.module.state_dict())
    return {
        "step": progress.step,
        "epoch": trainer.epoch,
        "best": progress.best,
        "weights_sha256": digest,
        "world_size": trainer.state.accelerator.num_processes,
        "images_per_second": trainer.clock.mean_images_per_second,
        "seconds": trainer.clock.seconds,
    }


def _recording_hooks(
    config: Config, run: RunDirectory, training: Training, values: dict[str, Any]
) -> tuple[list[Hook], Trackers]:
    """Return the hooks that record the run, and the trackers that they write to, which are still to be closed.

    values   the configuration and the environment, for W&B
    """
    plan, step = training.plan, training.progress.step
    trackers = open_trackers(config.tracking, run.path, step, training.progress.num_rows, values)
    hooks: list[Hook] = [TrackerHook(tracker) for tracker in trackers.metrics]
    named = [name for name in EVALUATION_NUMBERS if f"val/{name}" in config.metrics()]
    named += map(own_name, config.evaluation.metrics)
    quiet = not config.tracking.progress
    load = GpuLoad()
    compiles = bool(config.train.compile)
    pulse = Pulse(plan.total_steps, plan.steps_per_epoch, step, compiles=compiles, gpus=lambda: load.newest)
    run.pulse = pulse.now
    console = Console(plan.total_steps, plan.steps_per_epoch, step, pulse=pulse, quiet=quiet, metrics=named)
    hooks += [pulse, console]
    if training.state.accelerator.device.type == "cuda":
        hooks.append(load)
    if config.tracking.health is not None:
        hooks.append(HealthHook(trackers.health, to_steps(config.tracking.health.every, plan.steps_per_epoch)))
    return hooks, trackers


def _manifest(config: Config, training: Training, dataset: Dataset, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what every checkpoint's manifest says of the run, so that its weights can be used wherever they are."""
    args, key = training.state.objective.config.args, "pos_weight" if config.data.has_sets else "weight"
    class_weights = {"class_weights": args[key]} if is_balanced(config.loss) else {}
    return environment.bits(facts) | {
        "config": config.model_dump(mode="json"),
        "config_sha256": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        "data": dataset.listing.facts,
        "classes": list(dataset.class_names),
        "preprocess": asdict(training.samples.train.preprocess) | {"image_size": config.data.image_size},
        **class_weights,
    }


def _announce(config: Config, training: Training, facts: dict[str, Any], start: Checkpoint | None) -> None:
    """Log what is about to be trained, on what, and whether a resumed run is still exact."""
    threads, world_size = torch.get_num_threads(), facts["world_size"]
    logger.info(
        "%s: %d steps of %d images, %d an epoch; %d process%s on %s, %d thread%s each",
        config.name,
        training.plan.total_steps,
        training.plan.global_batch_size,
        training.plan.steps_per_epoch,
        world_size,
        "es" * (world_size > 1),
        facts["device_name"] if facts["device"] != "cpu" else "CPU",
        threads,
        "s" * (threads > 1),
    )
    if start is not None:
        is_elastic = config.train.reproducibility == "elastic"
        has_followed = training.schedule.has_followed
        now = environment.bits(facts)
        report = environment.resume_report(start.manifest, now, elastic=is_elastic, has_followed=has_followed)
        kept = " (a snapshot in memory)" if start.is_snapshot else ""
        logger.info("resuming from step %d%s: %s", start.step, kept, report)
