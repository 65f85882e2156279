"""The final test: the test split evaluated once, with the best weights where there are some, else with the last."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainlib.config import Config
from trainlib.data.datasets.dataset import Dataset
from trainlib.distributed.process_group import broadcast_object
from trainlib.errors import CheckpointError, TrainlaunchError
from trainlib.models.weights.files import load_weights
from trainlib.runs.directory import RunDirectory
from trainlib.runs.records.checkpoints import name_of
from trainlib.runs.records.shapes import numbers
from trainlib.training.checkpoints import checkpoint
from trainlib.training.checkpoints.checkpoint import Checkpoint
from trainlib.training.metrics.label_sets import SetPredictions
from trainlib.training.metrics.predictions import Predictions, collector, describe, write_evaluation
from trainlib.training.metrics.sums import Metrics
from trainlib.training.trainer import Trainer

logger = logging.getLogger("trainlib")


@dataclass(frozen=True)
class TestResult:
    """Metrics on the test split, and the weights that they belong to.

    step      of the weights
    weights   "best" or "last"
    remark    the weights in words
    """

    __test__ = False  # pytest takes it for a test otherwise

    metrics: Metrics
    predictions: Predictions | SetPredictions
    step: int
    weights: str
    remark: str


def evaluate_test_split(trainer: Trainer, run: RunDirectory, config: Config) -> TestResult:
    """Evaluate the test split with the best weights where there are some, else with the last. A collective."""
    progress, accelerator = trainer.progress, trainer.state.accelerator
    trainer.state.ema.swap_in()  # training is over: the average is what it leaves
    best, thresholds = progress.best, progress.thresholds
    if best is not None and best["step"] != progress.step:
        chosen = broadcast_object(_find_best(run, best["step"], thresholds) if accelerator.is_main_process else None)
        if chosen is not None:
            load_weights(trainer.state.classifier.module, chosen.model_state())
            thresholds = chosen.manifest["thresholds"] if thresholds is not None else None
        else:
            best = None
    collected = collector(config, trainer.state.objective.num_classes, accelerator.device)
    metrics = trainer.test(collected.add, thresholds)
    return TestResult(
        metrics=metrics,
        predictions=collected.gathered(),
        step=best["step"] if best else progress.step,
        weights="best" if best else "last",
        remark=(f"best weights, epoch {best['epoch']}" if best else "last weights")
        + (f"; stopped early after epoch {trainer.epoch}" if progress.ended_early else ""),
    )


def write_test_evaluation(run: RunDirectory, trainer: Trainer, dataset: Dataset, test: TestResult, root: str) -> None:
    """Write evaluation-test.json; the run is complete without it, so a failure only warns.

    root   `data.root`, where a person finds the files
    """
    source = {"split": "test", "step": test.step, "weights": test.weights}
    ids_N, num_train = torch.arange(len(dataset.test.labels_N)), len(dataset.train.labels_N)
    try:
        evaluation = describe(
            test.predictions,
            trainer.samples.test,
            ids_N,
            dataset.class_names,
            test.metrics,
            source,
            lambda index: dataset.listing.file_of(num_train + index, root),
        )
        write_evaluation(run.path, evaluation)
    except (OSError, TrainlaunchError) as error:
        logger.warning("the evaluation was not written (%s); `launch eval %s` makes it again", error, run.path.name)


def _find_best(run: RunDirectory, step: int, thresholds: Sequence[float] | None) -> Checkpoint | None:
    """Return the best checkpoint; None, with a warning, where its write failed or it was damaged since.

    thresholds   of the last weights, where there are such: those of the best ones must be as many
    """
    try:
        found = checkpoint.verify(run.checkpoints / name_of(step))
        its = found.manifest.get("thresholds")
        if thresholds is not None and not (numbers(its) and len(its) == len(thresholds)):
            raise CheckpointError(f"{found.path}: its manifest has no threshold for each class")
        return found
    except CheckpointError as error:
        logger.warning("the best weights are lost (%s); the last ones are tested instead", error)
        return None
