"""Rules on the metrics that decide something: the best checkpoint, the end of training, the learning rate."""

from __future__ import annotations

from collections.abc import Iterator

from trainlib.config.checking.suggest import format_value, one_of
from trainlib.config.custom import own_name
from trainlib.config.schema.sections import Best, Config, EarlyStopping
from trainlib.config.schema.values import METRICS, better_mode
from trainlib.errors import Mistake


def early_stopping_has_metric(config: Config) -> Iterator[Mistake]:
    """Check that early stopping does not wait for a validation that there is not."""
    stopping = config.train.early_stopping
    if stopping is not None:
        yield from _needs_validation("train.early_stopping.metric", stopping.metric, config)


def plateau_has_metric(config: Config) -> Iterator[Mistake]:
    """Check that ReduceLROnPlateau does not wait for a validation that there is not."""
    for key, scheduler in config.schedulers():
        if scheduler.name == "ReduceLROnPlateau" and scheduler.metric is not None:
            yield from _needs_validation(f"{key}.metric", scheduler.metric, config)


def _needs_validation(key: str, metric: str, config: Config) -> Iterator[Mistake]:
    if metric.startswith("val/") and config.data.val_fraction == 0:
        of_training = "train/loss" if metric == "val/loss" else "train/accuracy"
        yield Mistake(key, f"got {metric}, but data.val_fraction is 0: set data.val_fraction, or use {of_training}")


def best_mode(config: Config) -> Iterator[Mistake]:
    """Check that `checkpoint.best.mode` is the one of its metric."""
    yield from _section_mode_fits("checkpoint.best", config.checkpoint.best, config)


def early_stopping_mode(config: Config) -> Iterator[Mistake]:
    """Check that `train.early_stopping.mode` is the one of its metric."""
    yield from _section_mode_fits("train.early_stopping", config.train.early_stopping, config)


def _section_mode_fits(key: str, section: Best | EarlyStopping | None, config: Config) -> Iterator[Mistake]:
    if section is not None:
        yield from mode_fits(key, section.metric, section.mode, config)


def mode_fits(key: str, metric: str, mode: str | None, config: Config) -> Iterator[Mistake]:
    """Yield a mistake where the mode of the section `key` is not the one of its metric; an own metric needs one.

    A name that is no metric at all is told by `own_metrics_are_named`.
    """
    better = better_mode(metric)
    if better is None:
        if mode is None and metric in _own_metrics(config):
            yield Mistake(f"{key}.mode", f"is missing: {metric} is a metric of your own, give min or max")
    elif mode not in (None, better):
        yield Mistake(f"{key}.mode", f"got {mode}, must be {better} for {metric}: leave it out")


def _own_metrics(config: Config) -> list[str]:
    return [f"val/{own_name(name)}" for name in config.evaluation.metrics]


def own_metrics_are_named(config: Config) -> Iterator[Mistake]:
    """Check that a metric of one's own which decides something is computed: named in `evaluation.metrics`."""
    best, stopping = config.checkpoint.best, config.train.early_stopping
    deciding = [("checkpoint.best", best), ("train.early_stopping", stopping), *config.schedulers()]
    own = _own_metrics(config)
    for key, section in deciding:
        metric = section.metric if section is not None else None
        if metric is not None and metric not in (*METRICS, *own):
            rule = f"got {format_value(metric)}, {one_of([*METRICS, *own], metric)}"
            yield Mistake(f"{key}.metric", f"{rule} (your own are named in evaluation.metrics)")
    for index, name in enumerate(config.evaluation.metrics):
        if own.index(f"val/{own_name(name)}") != index:
            yield Mistake(f"evaluation.metrics.{index}", f"got {name} twice: name each metric once")
