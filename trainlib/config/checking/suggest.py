"""Suggestions for misspelt names, and the form in which messages show values."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any


def edit_distance(a: str, b: str) -> int:
    """Return the number of edits between two words: inserted, deleted, replaced or swapped letters.

    The optimal string alignment distance.
    """
    before: list[int] = []
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            cost = min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            current.append(cost)
        before, previous = previous, current
    return previous[-1]


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that `word` probably means; None if none is close.

    Close is within one edit, within a third of its letters, or alike by difflib's ratio of 0.7.
    """

    def likeness(choice: str) -> tuple[int, float]:
        a, b = word.casefold(), choice.casefold()
        return edit_distance(a, b), -difflib.SequenceMatcher(None, a, b).ratio()

    ranked = sorted((likeness(choice), choice) for choice in choices)
    if not ranked:
        return None
    (distance, ratio), choice = ranked[0]
    return choice if distance <= max(1, len(word) // 3) or -ratio >= 0.7 else None


def one_of(choices: Iterable[str], got: Any = None) -> str:
    """Return `must be one of a, b, c; did you mean b?`, where `got` is the wrong value."""
    listed = list(choices)
    guess = nearest(got, listed) if isinstance(got, str) else None
    rule = "must be " + (f"one of {', '.join(listed)}" if len(listed) > 1 else listed[0])
    return rule + (f"; did you mean {guess}?" if guess else "")


def format_value(value: Any) -> str:
    """Return a value as it is written in YAML, on one line of at most 60 characters."""
    text = "null" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    text = {"Infinity": ".inf", "-Infinity": "-.inf", "NaN": ".nan"}.get(text, text)
    return text if len(text) <= 60 else text[:57] + "..."
