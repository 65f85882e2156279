"""Rules on the network and its initial weights, that join several values."""

from __future__ import annotations

from collections.abc import Iterator

from trainlib.config.checking.suggest import format_value, one_of
from trainlib.config.libraries import catalog
from trainlib.config.schema.augment import Augment
from trainlib.config.schema.sections import Config
from trainlib.config.schema.values import check_run_name
from trainlib.errors import Mistake


def weights_known(config: Config) -> Iterator[Mistake]:
    """Check that `model.weights` is a file, a run, or a name that the model's source publishes."""
    weights, names = config.model.weights, catalog.weights(config.model.name)
    if (run := catalog.weights_run(weights)) is not None:
        yield from _run_known(config, run.name)
        return
    if weights is None or catalog.weights_file(weights) or weights in names:
        return
    path = f"the path of a file ({', '.join(catalog.WEIGHTS_SUFFIXES)})"
    if names:
        yield Mistake("model.weights", f"got {format_value(weights)}, {one_of([*names, path], weights)}")
    else:
        yield Mistake(
            "model.weights", f"got {format_value(weights)}, must be {path}: {config.model.name} has no named weights"
        )


def _run_known(config: Config, name: str) -> Iterator[Mistake]:
    try:
        check_run_name(name)
    except ValueError as error:
        yield Mistake("model.weights", f"got run:{name}, what follows run: {error}")
    if name == config.name:
        yield Mistake("model.weights", f"got run:{name}, must be another run than this one: choose another `--name`")


def constant_features(config: Config) -> Iterator[Mistake]:
    """Check that `model.cache_features: true` is asked only where every epoch has the same features."""
    if config.model.cache_features is not True:
        return
    if config.model.freeze is None:
        rule = "got true, but model.freeze is null, and then every layer changes: set model.freeze, or leave it out"
        yield Mistake("model.cache_features", rule)
    if config.data.augment != Augment():
        rule = "got true, but data.augment makes other images in every epoch: set data.augment={}, or leave it out"
        yield Mistake("model.cache_features", rule)
    if config.model.unfreeze is not None:
        rule = "got true, but model.unfreeze trains the frozen layers from some step on: leave one of the two out"
        yield Mistake("model.cache_features", rule)


def unfreezes_what_is_frozen(config: Config) -> Iterator[Mistake]:
    """Check that there are frozen layers for `model.unfreeze`."""
    if config.model.unfreeze is not None and config.model.freeze is None:
        rule = "is given, but model.freeze is null, and then all layers are trained from the start: set model.freeze"
        yield Mistake("model.unfreeze", f"{rule}, or leave it out")
