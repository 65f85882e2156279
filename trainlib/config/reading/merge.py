"""The merging of configuration layers, lowest first: files from left to right, then the command line.

Layers merge key by key, and the higher one wins. A section that names a class starts afresh when the name changes, so
that the arguments of SGD do not reach AdamW; the keys of `data` mean the same for every data set and stay. So does what
another network, by its name alone on the command line, is fine-tuned with (`_fine_tuning`). An empty mapping, or a
mapping given on the command line, replaces the section.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from typing import Any

from trainlib.config.reading.yaml_source import COMMAND_LINE, Source, parse_value
from trainlib.config.schema.keys import is_named
from trainlib.config.schema.sections import Config
from trainlib.errors import ConfigError, Mistake

_OVERRIDE = re.compile(r"[^/\\=\s]*=")
POLICY = "data.augment.policy"  # a named section within another one
WITHOUT_PUBLISHED_WEIGHTS = ("code:", "cifar10_")  # how such names of models begin
_DOTTED_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


class _Replacement(dict[str, Any]):
    """A mapping that takes the place of the section below it instead of merging with it."""


def is_override(argument: str) -> bool:
    """Return True if a command-line argument is `key=value`, not the path of a file."""
    return _OVERRIDE.match(argument) is not None


def parse_overrides(arguments: Sequence[str]) -> Source:
    """Parse `key=value` arguments into one layer, in which a later one wins. ConfigError lists every malformed one."""
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    mistakes: list[Mistake] = []
    for argument in arguments:
        key, _, text = argument.partition("=")
        try:
            _set(values, key, _override_value(key, text))
        except ConfigError as error:
            mistakes.extend(error.mistakes)
        parts = key.split(".")
        where |= {".".join(parts[: n + 1]): COMMAND_LINE for n in range(len(parts))}
    if mistakes:
        raise ConfigError(mistakes)
    return Source(values, where)


def _override_value(key: str, text: str) -> Any:
    if not _DOTTED_KEY.fullmatch(key):
        rule = f"got {key + '=' + text!r}, must be key=value with a dotted key, such as optimizer.lr=0.1"
        raise ConfigError([Mistake("", rule, COMMAND_LINE)])
    index = next((part for part in key.split(".") if part.isdigit()), None)
    if index is not None:
        whole = key.partition(f".{index}")[0]
        rule = f"one element of a list cannot be set: give the whole list, {whole}=[...]"
        raise ConfigError([Mistake(key, rule, COMMAND_LINE)])
    if not text.strip():
        raise ConfigError([Mistake(key, f"has no value: write {key}=null for none", COMMAND_LINE)])
    return parse_value(text, key)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), dict):
            # What an earlier argument set to a plain value is now replaced by a section.
            values[section] = _Replacement() if section in values else {}
        values = values[section]
    values[last] = _Replacement(value) if isinstance(value, dict) else value


def merge(layers: Sequence[Source]) -> Source:
    """Merge layers, lowest first. Raises ConfigError if a dotted key leads into a list of a lower layer."""
    return reduce(_merge_two, layers, Source({}))


def _merge_two(base: Source, layer: Source) -> Source:
    where = dict(base.where)
    values = _merge_section(base.values, layer.values, "", where, layer)
    return Source(values, where | layer.where)


def _merge_section(
    base: dict[str, Any], over: dict[str, Any], section: str, where: dict[str, str], layer: Source
) -> dict[str, Any]:
    """Merge the mapping `over` into `base`; remove the places of replaced values from `where`."""
    merged = dict(base)
    if section == "train":
        _remove_other_length(merged, over)
    for name, value in over.items():
        key = f"{section}.{name}" if section else name
        old = merged.get(name)
        if key == POLICY and isinstance(old, str):  # a name alone stands for a section of that name
            old = {"name": old}
        partial = isinstance(value, dict) and bool(value) and not isinstance(value, _Replacement)
        if partial and isinstance(old, list) and layer.locate(key) == COMMAND_LINE:
            rule = f"is a list in {where.get(key, 'the file')}: give the whole list, {key}=[...]"
            raise ConfigError([Mistake(key, rule, COMMAND_LINE)])
        if partial and isinstance(old, dict) and not _renamed(key, old, value):
            merged[name] = _merge_section(old, value, key, where, layer)
        else:
            stays: dict[str, Any] = {}
            if key == "model" and partial and isinstance(old, dict) and layer.locate("model.name") == COMMAND_LINE:
                stays = _fine_tuning(old, value["name"])
            merged[name] = _merge_section(stays, value, key, {}, layer) if isinstance(value, dict) else value
            for gone in [k for k in where if k.startswith(f"{key}.") and k.split(".")[1] not in stays]:
                del where[gone]
    return merged


def _renamed(section: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    if section == POLICY:
        return "name" in new and new["name"] != old.get("name")
    field = Config.model_fields.get(section)
    if field is None or not is_named(section) or "name" not in new:
        return False
    return bool(new["name"] != old.get("name", getattr(field.default, "name", None)))


def _fine_tuning(old: dict[str, Any], name: Any) -> dict[str, Any]:
    """Return what of a `model` section holds for the network `name` too: nothing that names layers of the old one.

    These are the published weights and, beside them, a frozen backbone and when all of it is trained.
    """
    if old.get("weights") != "pretrained" or str(name).startswith(WITHOUT_PUBLISHED_WEIGHTS):
        return {}
    stays: dict[str, Any] = {"weights": "pretrained"}
    stages = old.get("unfreeze") or []
    for_all = [stage for stage in stages if isinstance(stage, dict) and stage.get("match") == "*"]
    if old.get("freeze") == "backbone" and bool(for_all) == bool(stages):
        stays |= {"freeze": "backbone"} | ({"unfreeze": for_all} if for_all else {})
    return stays


def _remove_other_length(train: dict[str, Any], over: dict[str, Any]) -> None:
    """Remove the lower layer's `epochs` where this one sets `steps`, and the other way round."""
    for key, other in (("epochs", "steps"), ("steps", "epochs")):
        if over.get(key) is not None and over.get(other) is None:
            train.pop(other, None)
