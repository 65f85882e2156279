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


def whole_batches(config: Config) -> Iterator[Mistake]:
    """Refuse micro-batches beside BatchNorm statistics of the global batch, which need all of it at once."""
    micro = config.train.micro_batch_size
    if config.model.sync_batchnorm and micro is not None:
        rule = (
            f"got {micro}, but model.sync_batchnorm takes statistics of the global batch, which is then computed as "
            "a whole: leave it out; model.checkpoint_activations=true or more processes save memory"
        )
        yield Mistake("train.micro_batch_size", rule)


def batchnorm_learns(config: Config) -> Iterator[Mistake]:
    """Refuse to take BatchNorm's statistics over all processes where it takes none."""
    if config.model.sync_batchnorm and config.train.keep_batchnorm:
        rule = "got true, but train.keep_batchnorm is true, and then no statistics are taken: leave one of the two out"
        yield Mistake("model.sync_batchnorm", rule)


def not_audited(config: Config) -> Iterator[Mistake]:
    """Refuse to have one rank repeat what it can only compute with all others."""
    if config.model.sync_batchnorm and config.train.audit is not None:
        rule = f"got {config.train.audit}, must be null with model.sync_batchnorm, whose layers take all ranks"
        yield Mistake("train.audit", rule)


def not_compiled(config: Config) -> Iterator[Mistake]:
    """Refuse to compile what torch's compiler does not see through."""
    if config.train.compile is False:
        return
    for key in ("sync_batchnorm", "checkpoint_activations"):
        if getattr(config.model, key):
            compiled = "true" if config.train.compile is True else config.train.compile
            yield Mistake("train.compile", f"got {compiled}, but model.{key} is true: leave one of the two out")
