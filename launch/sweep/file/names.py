"""Names of the runs of a sweep, and short names for the keys that tell its runs apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainlib.config.load import name_from

MAX_SWEEP_NAME = 94  # characters: its runs have a number behind it
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME = 100  # of a run's name


def sweep_name(file: str) -> str:
    """Return the name of a sweep that has none, from its file's, as a run has it."""
    return name_from(file, "sweep", MAX_SWEEP_NAME)


def numbered(sweep: str, count: int) -> list[str]:
    """Return the names `sweep-000`, `sweep-001` and so on."""
    return [f"{sweep}-{index:03d}" for index in range(count)]


def element_names(sweep: str, combinations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a run name for each combination: `sweep-lr0.1-seed0`, which stays the same when the grid grows.

    Names that would be too long, or not all different (some disks take a for A), are numbered instead, from
    `sweep-000` on.
    """
    labels = short_keys(dict.fromkeys(key for values in combinations for key in values))
    labels |= {key: "" for key in labels if key.endswith(".name")}  # SGD, not optimizer-SGD
    names = ["-".join([sweep, *(_part(labels[key], value) for key, value in c.items())]) for c in combinations]
    if len({name.casefold() for name in names}) == len(names) and max(map(len, names)) <= _MAX_NAME:
        return names
    return numbered(sweep, len(combinations))


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return for each dotted key the shortest ending that no other key has: `lr`, or `optimizer.lr` beside another lr.

    `.name` at the end is left out: `optimizer.name` is `optimizer`.
    """
    whole = {key: key.removesuffix(".name") for key in keys}
    short = {}
    for key, text in whole.items():
        parts = text.split(".")
        endings = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        short[key] = next(
            e for e in endings if e == text or sum(f".{t}".endswith(f".{e}") for t in whole.values()) == 1
        )
    return short


def value_text(value: Any) -> str:
    """Return a value as short text: `0.1`, `backbone`; a mapping gives its contents, `SGD-lr0.1`."""
    if isinstance(value, Mapping):
        return "-".join(_part("" if key == "name" else key, inner) for key, inner in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _part(label: str, value: Any) -> str:
    """Return the part of a run name for one value: `lr0.1`, `freeze-backbone`; for a class `SGD-lr0.1`."""
    text = _NOT_IN_NAMES.sub("-", value_text(value)).strip("-")
    if not label or not text or (isinstance(value, Mapping) and "name" in value):
        return text or label
    return label + text if type(value) in (int, float) else f"{label}-{text}"
