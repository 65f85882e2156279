"""A configuration as text, and what differs between two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from trainlib.config.reading.yaml_source import add_core_schema
from trainlib.config.schema import Config


class _Dumper(yaml.SafeDumper):
    """Quotes text that either PyYAML or YAML 1.2 would read as something else, such as "no" or "1e-3"."""

    def represent_values(self, values: list[Any]) -> yaml.Node:
        flow = not any(isinstance(value, dict | list) for value in values)
        return self.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=flow)

    def ignore_aliases(self, data: Any) -> bool:
        return True


add_core_schema(_Dumper)
_Dumper.add_representer(list, _Dumper.represent_values)


def dump_config(config: Config) -> str:
    """The configuration as YAML, every default visible; `read_resolved` gives an equal one back."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)


@dataclass(frozen=True)
class Difference:
    """A value that two configurations do not share; None stands for an absent one too."""

    key: str
    old: Any
    new: Any


def differences(a: Config, b: Config) -> list[Difference]:
    """Every dotted key in which `b` differs from `a`; a list counts as one value."""
    return list(_differences(a.model_dump(), b.model_dump(), ""))


def _differences(a: dict[str, Any], b: dict[str, Any], prefix: str) -> Iterator[Difference]:
    for name in [*a, *(name for name in b if name not in a)]:
        old, new = a.get(name), b.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield Difference(prefix + name, old, new)


def is_harmless(key: str) -> bool:
    """Whether a change of this dotted key leaves what the finished part of a run computed as it is."""
    return any(key == harmless or key.startswith(f"{harmless}.") for harmless in Config.HARMLESS)
