"""Defaults that depend on other values. A resolved configuration has all of them filled in."""

from __future__ import annotations

from typing import Any, TypeVar

from trainlib.config.custom import is_custom
from trainlib.config.libraries import catalog
from trainlib.config.schema.augment import PolicyConfig
from trainlib.config.schema.sections import (
    Best,
    CheckpointConfig,
    Config,
    DataConfig,
    EarlyStopping,
    LossConfig,
    OptimizerConfig,
    SchedulerConfig,
    TrainConfig,
)
from trainlib.config.schema.values import POLICY_ARGUMENTS, better_mode

EPOCHS = 20
ACTIVATIONS = {
    "CrossEntropyLoss": "none",
    "NLLLoss": "log_softmax",
    "BCELoss": "sigmoid",
    "BCEWithLogitsLoss": "none",
    "L1Loss": "softmax",
    "SmoothL1Loss": "softmax",
    "HuberLoss": "softmax",
    "MSELoss": "softmax",
    "MultiMarginLoss": "none",
}
_WithMetric = TypeVar("_WithMetric", Best, EarlyStopping)


def resolve(config: Config) -> Config:
    """Return the configuration with every dependent default filled in. Resolving twice changes nothing more."""
    filled: dict[str, Any] = {
        "data": _data(config.data),
        "loss": _loss(config.loss),
        "optimizer": _optimizer(config.optimizer),
        "train": _train(config.train),
        "checkpoint": _checkpoint(config.checkpoint, config.data),
    }
    if isinstance(config.scheduler, SchedulerConfig):
        filled["scheduler"] = _scheduler(config.scheduler, config.data.val_fraction)
    elif config.scheduler is not None:
        filled["scheduler"] = [_scheduler(scheduler, config.data.val_fraction) for scheduler in config.scheduler]
    return config.model_copy(update=filled)


def _data(data: DataConfig) -> DataConfig:
    policy = data.augment.policy
    if policy is None:
        return data
    given = {"name": policy} if isinstance(policy, str) else policy.model_dump(exclude_none=True)
    filled = PolicyConfig.model_validate({**POLICY_ARGUMENTS[given["name"]], **given})
    return data.model_copy(update={"augment": data.augment.model_copy(update={"policy": filled})})


def _loss(loss: LossConfig) -> LossConfig:
    return (
        loss.model_copy(update={"activation": ACTIVATIONS.get(loss.name, "none")})
        if loss.activation == "auto"
        else loss
    )


def _optimizer(optimizer: OptimizerConfig) -> OptimizerConfig:
    if is_custom(optimizer.name):
        return optimizer
    lr = catalog.arguments("optimizer", optimizer.name)["lr"].default
    return optimizer if "lr" in optimizer.args else optimizer.model_copy(update={"lr": lr})


def _scheduler(scheduler: SchedulerConfig, val_fraction: float) -> SchedulerConfig:
    if scheduler.name != "ReduceLROnPlateau":
        return scheduler
    metric = scheduler.metric or ("val/loss" if val_fraction > 0 else "train/loss")
    return scheduler.model_copy(update={"metric": metric, "mode": better_mode(metric) or scheduler.args.get("mode")})


def _train(train: TrainConfig) -> TrainConfig:
    epochs = EPOCHS if train.epochs is None and train.steps is None else train.epochs
    return train.model_copy(update={"epochs": epochs, "early_stopping": _with_mode(train.early_stopping)})


def _checkpoint(checkpoint: CheckpointConfig, data: DataConfig) -> CheckpointConfig:
    best = _with_mode(checkpoint.best)
    if data.has_sets and "best" not in checkpoint.model_fields_set:
        best = Best(metric="val/map", mode="max")
    if best is not None and best.metric.startswith("val/") and data.val_fraction == 0:
        best = None
    return checkpoint.model_copy(update={"best": best})


def _with_mode(section: _WithMetric | None) -> _WithMetric | None:
    return section and section.model_copy(update={"mode": better_mode(section.metric) or section.mode})
