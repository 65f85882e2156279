"""Configurations as YAML text, and the differences between two of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from trainlib.config.libraries.catalog import PRETRAINED
from trainlib.config.reading.yaml_source import add_core_schema
from trainlib.config.schema.sections import Config


class _Dumper(yaml.SafeDumper):
    """A YAML writer that quotes text which PyYAML or YAML 1.2 would read as another type, such as "no" or "1e-3"."""

    def represent_short_list(self, values: list[Any]) -> yaml.Node:
        """Write a list of plain values on one line."""
        flow = not any(isinstance(value, dict | list) for value in values)
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow)

    def ignore_aliases(self, data: Any) -> bool:
        """Write values that occur twice in full, not as an alias of the first."""
        return True


add_core_schema(_Dumper)
_Dumper.add_representer(list, _Dumper.represent_short_list)


def dump_config(config: Config) -> str:
    """Return the configuration as YAML with every default; `read_resolved` reads an equal one from it."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)


@dataclass(frozen=True)
class Difference:
    """A dotted key at which two configurations differ, with both values; None also stands for a missing one."""

    key: str
    old: Any
    new: Any


def differences(a: Config, b: Config) -> list[Difference]:
    """Return every dotted key at which `b` differs from `a`; a list counts as one value."""
    return list(_differences(a.model_dump(), b.model_dump(), ""))


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str) -> Iterator[Difference]:
    for name in [*a, *(name for name in b if name not in a)]:
        old, new = a.get(name), b.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield Difference(prefix + name, old, new)


def harmful(earlier: Config, later: Config) -> list[Difference]:
    """Return the differences that affect what a run with the earlier configuration has already computed."""
    changes = [change for change in differences(earlier, later) if not (is_free(change.key) or is_harmless(change.key))]
    if _adds_schedulers(earlier, later):
        changes = [
            change for change in changes if change.key != "scheduler" and not change.key.startswith("scheduler.")
        ]
    return changes


def trained_otherwise(recorded: Config, given: Config) -> list[Difference]:
    """Return the differences that affect what a run has computed, between its config.yaml and what was asked for.

    What a start makes explicit there of `model.weights` is no difference: see `pin_weights`.
    """
    changed = harmful(recorded, given)
    return changed if given.model.weights is None else [change for change in changed if not _is_made_explicit(change)]


def _is_made_explicit(change: Difference) -> bool:
    if change.key == "model.weights":
        is_default = change.old is not None and change.new in (PRETRAINED, "DEFAULT")
        return is_default or str(change.old).startswith(f"{change.new}@")
    is_auto = change.new == "auto" and change.key.startswith(("data.normalize", "data.resize."))
    return is_auto or change.key in ("data.resize.fit", "model.transform_input")


def _adds_schedulers(earlier: Config, later: Config) -> bool:
    """Return True if the schedule goes on after the earlier one, whose last scheduler had no duration."""
    old = [scheduler for _, scheduler in earlier.schedulers()]
    new = [scheduler for _, scheduler in later.schedulers()]
    if not 0 < len(old) < len(new) or old[-1].duration is not None:
        return False
    ended = new[len(old) - 1].model_copy(update={"duration": None})
    return [*new[: len(old) - 1], ended] == old


def is_harmless(key: str) -> bool:
    """Return True if a change of this dotted key does not affect what a run has already computed."""
    return any(key == harmless or key.startswith(f"{harmless}.") for harmless in Config.HARMLESS)


def is_free(key: str) -> bool:
    """Return True if this dotted key says nothing of what a run computes, and may change without a question."""
    return any(key == free or key.startswith(f"{free}.") for free in Config.FREE)
