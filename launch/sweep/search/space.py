"""The space of a search: which values a key may have, and samples of them as a pure function of seed and number."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from trainlib.config.checking.suggest import format_value, nearest
from trainlib.errors import Mistake

Axis = Mapping[str, Any] | list[Any]  # a range with min, max and log, or a list of choices
_KEYS = ("min", "max", "log")
_DIGITS = 4  # of a sampled number, more in a narrow range: a command line is to be read
_MOST_DRAWS = 100  # for each sample that is wanted, as values may come twice


def wrong_axis(key: str, axis: Any) -> Iterator[Mistake]:
    """Yield what is wrong with the values of one key of the space."""
    example = "must be a list of values, or a range such as {min: 1e-4, max: 0.1, log: true}"
    if isinstance(axis, list):
        if not axis:
            yield Mistake(key, f"got [], {example}")
        return
    if not isinstance(axis, dict):
        yield Mistake(key, f"got {format_value(axis)}, {example}")
        return
    for name in axis:
        if name not in _KEYS:
            guess = nearest(name, _KEYS)
            instead = f"did you mean {guess}?" if guess else f"must be one of {', '.join(_KEYS)}"
            yield Mistake(f"{key}.{name}", f"unknown key; {instead}")
    if not isinstance(axis.get("log", False), bool):
        yield Mistake(f"{key}.log", f"got {format_value(axis['log'])}, must be true or false")
    for name in ("min", "max"):
        if name not in axis:
            yield Mistake(f"{key}.{name}", f"is missing, {example}")
        elif not _is_number(axis[name]):
            yield Mistake(f"{key}.{name}", f"got {format_value(axis[name])}, must be a finite number")
    low, high = axis.get("min"), axis.get("max")
    if low is not None and high is not None and _is_number(low) and _is_number(high):
        if low >= high:
            yield Mistake(f"{key}.min", f"got {low}, must be below max, {high}")
        if math.isinf(high - low):
            yield Mistake(key, f"got {low} to {high}, which is wider than numbers are")
        if axis.get("log") is True and low <= 0:
            yield Mistake(f"{key}.min", f"got {low}, must be > 0 with log: true")


def samples(space: Mapping[str, Axis], seed: int, count: int) -> list[dict[str, Any]]:
    """Return so many different samples; fewer where the space has no more. A longer list begins with a shorter one."""
    found: dict[str, dict[str, Any]] = {}
    for number in range(_MOST_DRAWS * count):
        sample = {key: _value(axis, _uniform(seed, number, key)) for key, axis in space.items()}
        found.setdefault(json.dumps(sample), sample)
        if len(found) == count:
            break
    return list(found.values())


def ends(axis: Axis) -> list[tuple[str, Any]]:
    """Return the values of a key between which all others lie, each with its place below the key."""
    if isinstance(axis, list):
        return [(str(index), value) for index, value in enumerate(axis)]
    return [("min", axis["min"]), ("max", axis["max"])]


def is_whole(axis: Mapping[str, Any]) -> bool:
    """Return True if a range holds whole numbers only, as both of its ends are written as such."""
    return type(axis["min"]) is int and type(axis["max"]) is int


def rounded(axis: Mapping[str, Any], value: float) -> float | int:
    """Return a value of a range with few digits, and inside of the range."""
    if is_whole(axis):
        return int(min(max(round(value), axis["min"]), axis["max"]))
    largest = max(abs(axis["min"]), abs(axis["max"]))
    narrowness = math.log10(largest / (axis["max"] - axis["min"]))  # 0.999 to 0.9999: its first digits tell nothing
    digits = _DIGITS + max(0, math.floor(narrowness) - 1)
    return float(min(max(float(f"{value:.{digits}g}"), axis["min"]), axis["max"]))


def _value(axis: Axis, uniform: float) -> Any:
    """Return the value of a key that a number from 0 up to 1 stands for."""
    if isinstance(axis, list):
        return axis[int(uniform * len(axis))]
    low, high = axis["min"], axis["max"]
    if is_whole(axis):
        low, high = low - 0.5, high + 0.5  # every whole number has an equal share
    if axis.get("log"):
        return rounded(axis, math.exp(math.log(low) + uniform * (math.log(high) - math.log(low))))
    return rounded(axis, low + uniform * (high - low))


def _uniform(seed: int, number: int, key: str) -> float:
    """Return a random number from 0 up to 1, by its name alone: another key does not change it."""
    digest = hashlib.sha256(f"{seed}\0{number}\0{key}".encode()).digest()
    return int.from_bytes(digest[:6]) / (1 << 48)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
