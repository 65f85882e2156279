"""Did you mean: the closest of several names, and how a value is shown in a message."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from typing import Any


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours between two words (optimal string alignment)."""
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
    """The choice that `word` was probably meant to be: within one edit or a third of its letters, or much alike."""

    def likeness(choice: str) -> tuple[int, float]:
        a, b = word.casefold(), choice.casefold()
        return edit_distance(a, b), -difflib.SequenceMatcher(None, a, b).ratio()

    ranked = sorted((likeness(choice), choice) for choice in choices)
    if not ranked:
        return None
    (distance, ratio), choice = ranked[0]
    return choice if distance <= max(1, len(word) // 3) or -ratio >= 0.7 else None


def one_of(choices: Iterable[str], got: Any = None) -> str:
    """`must be one of a, b, c; did you mean b?`"""
    listed = list(choices)
    guess = nearest(got, listed) if isinstance(got, str) else None
    rule = "must be " + (f"one of {', '.join(listed)}" if len(listed) > 1 else listed[0])
    return rule + (f"; did you mean {guess}?" if guess else "")


def shown(value: Any) -> str:
    """A value as it would be written in YAML, on one line and not too long."""
    text = "null" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    text = {"Infinity": ".inf", "-Infinity": "-.inf", "NaN": ".nan"}.get(text, text)
    return text if len(text) <= 60 else text[:57] + "..."
