"""Rules on sets of labels (`data.labels: several`), that join several values."""

from __future__ import annotations

from collections.abc import Iterator

from trainlib.config.custom import is_custom
from trainlib.config.schema.sections import Config
from trainlib.config.schema.values import OF_ONE_LABEL, OF_SEVERAL_LABELS
from trainlib.errors import Mistake

SET_LOSSES = ("BCEWithLogitsLoss",)  # each class is a question of its own


def _several_labels_are_listed(config: Config) -> Iterator[Mistake]:
    data = config.data
    if data.has_sets and data.name != "table" and not is_custom(data.name):
        rule = f"got several, but data.name is {data.name}, in which a picture has one label: use data.name=table"
        yield Mistake("data.labels", rule)
    if not data.has_sets and data.label_separator != ";":
        rule = f"got {data.label_separator!r}, but data.labels is one: set data.labels=several, or leave it out"
        yield Mistake("data.label_separator", rule)


def _loss_takes_sets(config: Config) -> Iterator[Mistake]:
    name = config.loss.name
    if config.data.has_sets and name not in SET_LOSSES and not is_custom(name):
        rule = f"got {name}, must be {' or '.join(SET_LOSSES)}: data.labels is several, and {name} takes one class"
        yield Mistake("loss.name", f"{rule} for each picture")


def _no_class_to_balance(config: Config) -> Iterator[Mistake]:
    if config.data.has_sets and config.data.balance:
        rule = f"got {config.data.balance}, but data.labels is several: a picture has no one class to be drawn by"
        yield Mistake("data.balance", f"{rule}; set 0, and let rare classes count more with loss.weight=balanced")


def _metrics_fit_the_labels(config: Config) -> Iterator[Mistake]:
    foreign, fitting = (OF_ONE_LABEL, OF_SEVERAL_LABELS) if config.data.has_sets else (OF_SEVERAL_LABELS, OF_ONE_LABEL)
    best, stopping = config.checkpoint.best, config.train.early_stopping
    named = [("checkpoint.best", best), ("train.early_stopping", stopping), *config.schedulers()]
    for key, section in named:
        if section is not None and section.metric in foreign:
            choices = ", ".join(fitting)
            rule = f"got {section.metric}, which has no meaning where data.labels is {config.data.labels}"
            yield Mistake(f"{key}.metric", f"{rule}: use val/loss, val/accuracy, val/macro_f1, {choices}")


RULES = (
    ({"data"}, _several_labels_are_listed),
    ({"data"}, _no_class_to_balance),
    ({"data", "loss"}, _loss_takes_sets),
    ({"data", "checkpoint", "train", "scheduler"}, _metrics_fit_the_labels),
)
