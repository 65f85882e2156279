"""Rank 0's outputs: what an attempt tells the console and the trackers, and where its checkpoints go."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch

from trainlib.config import Config, dump_config
from trainlib.data.batches.plan import to_steps
from trainlib.data.dataset import Dataset
from trainlib.distributed import hardware
from trainlib.models.weights import weights_sha256
from trainlib.runs import environment
from trainlib.runs.attempts import Attempt
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files import write_atomically
from trainlib.training.checkpoints.checkpoint import Checkpoint
from trainlib.training.checkpoints.manager import CheckpointManager
from trainlib.training.metrics.health import Health
from trainlib.training.tracking import Trackers, log_all, open_trackers
from trainlib.training.tracking.console import Console
from trainlib.training.trainer import Outputs, Trainer

logger = logging.getLogger("trainlib")


@contextmanager
def open_outputs(
    config: Config, run: RunDirectory, trainer: Trainer, dataset: Dataset, attempt: Attempt, start: Checkpoint | None
) -> Iterator[Outputs]:
    """Whatever happens, they are closed, and how far the attempt came is recorded."""
    plan, progress = trainer.plan, trainer.progress
    facts = hardware.describe(trainer.state.accelerator.device, trainer.state.accelerator.num_processes)
    write_atomically(run.environment_file, json.dumps(facts, indent=2) + "\n")
    _announce(config, trainer, facts)
    if start is not None:
        is_elastic = config.train.reproducibility == "elastic"
        report = environment.resume_report(start.manifest, environment.bits(facts), elastic=is_elastic)
        logger.info("resuming from step %d: %s", start.step, report)
    manifest = environment.bits(facts) | {
        "config": config.model_dump(mode="json"),  # with which the weights can be used wherever they are copied to
        "config_sha256": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        "classes": list(dataset.class_names),
        "preprocess": asdict(trainer.samples.train.preprocess),
    }
    console = Console(plan.total_steps, plan.steps_per_epoch, progress.step, quiet=not config.tracking.progress)
    opened = open_trackers(config.tracking, run.path, progress.step, manifest["config"] | {"environment": facts})
    trackers = [*opened.metrics, console]
    checkpoint_manager = CheckpointManager(
        run.checkpoints, config.checkpoint.keep, manifest, background=config.checkpoint.background
    )
    if config.tracking.health is not None:
        _watch_health(trainer, opened, to_steps(config.tracking.health.every, plan.steps_per_epoch))
    try:
        yield Outputs(trackers, console, checkpoint_manager)
    except BaseException:
        with suppress(Exception):  # a broken device or a full disk must not hide the error itself
            run.write_summary({"status": "failed"} | summary_of(trainer) | {"test": None})
        raise
    finally:
        attempt.step = progress.step
        checkpoint_manager.close()
        for tracker in {id(tracker): tracker for tracker in (*opened.health, *trackers)}.values():
            tracker.close()


def summary_of(trainer: Trainer) -> dict[str, Any]:
    """What summary.json says of the training itself."""
    progress = trainer.progress
    with trainer.state.ema_weights():
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


def _announce(config: Config, trainer: Trainer, facts: dict[str, Any]) -> None:
    """One line on what is about to be trained, and on what."""
    threads, world_size = torch.get_num_threads(), facts["world_size"]
    logger.info(
        "%s: %d steps of %d images, %d an epoch; %d process%s on %s, %d thread%s each",
        config.name,
        trainer.plan.total_steps,
        trainer.plan.global_batch_size,
        trainer.plan.steps_per_epoch,
        world_size,
        "es" * (world_size > 1),
        facts["device_name"] if facts["device"] == "cuda" else "CPU",
        threads,
        "s" * (threads > 1),
    )


def _watch_health(trainer: Trainer, trackers: Trackers, every: int) -> None:
    """Look at gradients and weights in every so many steps."""
    plan, progress = trainer.plan, trainer.progress
    Health(
        trainer.state.classifier.module,
        trainer.state.optimizer.optimizer,
        every,
        position=lambda: (progress.step + 1, plan.epoch_of(progress.step) + 1),
        log=lambda row: log_all(trackers.health, row),
    )
