"""The keys `folds` and `seeds` of a sweep file: the values that they add to its grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainlib.config.checking.suggest import format_value
from trainlib.errors import Mistake

VARIED = {"folds": "data.fold", "seeds": "seed"}  # the key that each of them varies


def wrong_repeats(content: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield the mistakes in `folds` and `seeds` of a sweep file."""
    for key, varied in VARIED.items():
        value = content.get(key)
        if value is None:
            continue
        if type(value) is not int or value < 2:
            yield Mistake(key, f"got {format_value(value)}, must be a whole number >= 2, or null")
        if content.get("space") is not None or content.get("rungs") is not None:
            rule = "got a search beside it (space, rungs): search first, then repeat the best one in a sweep of its own"
            yield Mistake(key, rule)
        for section in _sections(content):
            values = content.get(section) if "." not in section else content["runs"][int(section.split(".")[1])]
            if isinstance(values, Mapping) and varied in values:
                yield Mistake(f"{section}.{varied}", f"is varied by {key}: take one of them out")


def _sections(content: Mapping[str, Any]) -> list[str]:
    """Return the names of the sections that set values of runs."""
    runs = content.get("runs")
    return ["grid", "space", *(f"runs.{index}" for index in range(len(runs) if isinstance(runs, list) else 0))]


def with_repeats(content: Mapping[str, Any], seed: int) -> dict[str, list[Any]]:
    """Return the grid of a sweep file with what `folds` and `seeds` add to it; its last key varies fastest.

    seed   of the configuration, the first of `seeds`
    """
    grid = dict(content.get("grid") or {})
    if (seeds := content.get("seeds")) is not None:
        grid["seed"] = list(range(seed, seed + seeds))
    if (folds := content.get("folds")) is not None:
        grid["data.fold"] = [f"{fold}/{folds}" for fold in range(1, folds + 1)]
    return grid


def repeated_keys(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the dotted keys that `folds` and `seeds` vary; none where the file has neither."""
    return tuple(varied for key, varied in VARIED.items() if content.get(key) is not None)
