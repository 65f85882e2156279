"""Configured values beside a part that is given in Python to `trainlib.fit`: which of them would be lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from trainlib.config.checking.suggest import format_value
from trainlib.config.custom import custom_part_missing, is_code, is_custom
from trainlib.config.reading.yaml_source import Source
from trainlib.config.schema.base import Named
from trainlib.config.schema.sections import Config, LossConfig, ModelConfig, OptimizerConfig
from trainlib.errors import ConfigError, Mistake

logger = logging.getLogger("trainlib")

TRANSFORM = "data.augment.custom"
METRICS = "evaluation.metrics"
_NO_TRANSFORM = (
    "got {}, must be code:NAME, with `--code FILE.py`, or given in Python: trainlib.fit(transform=...), see "
    "docs/own_code.md"
)

# Values that decide what is learned, and the way to have the same with a part of one's own.
_IN_THE_PART: Mapping[str, Mapping[str, str]] = {
    "model": {
        "weights": "load them into it first (load_state_dict)",
        "freeze": "freeze its layers first (requires_grad_(False))",
        "unfreeze": "freeze its layers first (requires_grad_(False)), and train them in a run of their own",
    },
    "loss": {
        "weight": "let it multiply the loss of each sample by the weight of its class",
        "pos_weight": "let it multiply the loss of each sample by the weight of its class",
        "ignore_index": "let it return 0 for samples of this class",
    },
    "optimizer": {
        "no_decay": "give that parameter group weight_decay 0 in your function",
        "layer_decay": "give each parameter group its learning rate in your function",
        "param_groups": "make the parameter groups in your function",
    },
    "data": {
        "table": "make the data set of the rows that it is to hold",
        "group": "keep the samples of a group on one side when you make the two splits",
        "test_fraction": "hold that share out when you make the two splits",
    },
}
_SECTIONS: Mapping[str, type[Named]] = {"model": ModelConfig, "loss": LossConfig, "optimizer": OptimizerConfig}
_NOT_LOST = ("name", "cache_features", "sync_batchnorm", "checkpoint_activations")  # what every model has


def refuse_lost_values(source: Source, given: Mapping[str, str]) -> None:
    """Raise ConfigError for values that decide what is learned, where a part given in Python takes their place.

    given   the sections that such parts replace, with their names

    A line of the log names the others that are not used.
    """
    mistakes: list[Mistake] = []
    for part, ways in _IN_THE_PART.items():
        section = source.values.get(part)
        if part in given and isinstance(section, dict):
            mistakes += _lost(part, section, ways, source)
    if mistakes:
        raise ConfigError(mistakes)
    for part in _SECTIONS:  # the keys of `data` mean the same for every data set
        section = source.values.get(part)
        if part in given and isinstance(section, dict) and (unused := _unused(part, section, given[part])):
            logger.warning("not used, as a %s is given in Python: %s", part, ", ".join(unused))


def _lost(part: str, section: Mapping[str, Any], ways: Mapping[str, str], source: Source) -> Iterator[Mistake]:
    noun = "data set" if part == "data" else part
    for key, way in ways.items():
        if section.get(key) is not None:
            rule = f"got {format_value(section[key])}, must be null for a {noun} that is given in Python: {way}"
            yield Mistake(f"{part}.{key}", rule, source.locate(f"{part}.{key}"))


def _unused(part: str, section: Mapping[str, Any], name: str) -> list[str]:
    """Return keys and values that a given part makes meaningless; none of an earlier run's section for that part."""
    if section.get("name") == name:
        return []
    defaults = {key: field.default for key, field in _SECTIONS[part].model_fields.items()}
    defaults |= Config.model_fields[part].default.model_dump(exclude_unset=True)
    chosen = {key: value for key, value in section.items() if key not in _NOT_LOST and value != defaults.get(key)}
    return [f"{part}.{key} {format_value(value)}" for key, value in chosen.items()]


def refuse_missing_parts(source: Source, given: Mapping[str, str]) -> None:
    """Raise ConfigError for a name like `custom:TinyNet`, from an earlier run's config.yaml, without its object."""
    mistakes = []
    for section in ("data", "model", "loss", "optimizer"):
        values = source.values.get(section)
        name = values.get("name") if isinstance(values, dict) else None
        if isinstance(name, str) and is_custom(name) and not is_code(name) and section not in given:
            mistakes.append(Mistake(f"{section}.name", custom_part_missing(name), source.locate(f"{section}.name")))
    data = source.values.get("data")
    augment = data.get("augment") if isinstance(data, dict) else None
    transform = augment.get("custom") if isinstance(augment, dict) else None
    if transform is not None and not is_code(transform) and TRANSFORM not in given:
        rule = custom_part_missing(str(transform)) if is_custom(transform) else _NO_TRANSFORM.format(transform)
        mistakes.append(Mistake(TRANSFORM, rule, source.locate(TRANSFORM)))
    if mistakes:
        raise ConfigError(mistakes)
