"""The importance of the keys that a search varies: how much of the trials' ranking each of them explains alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

LEAST = 6  # trials: of fewer, nothing can be said
BINS = 3  # of a number's values: a good learning rate lies between too small ones and too large ones


def importances(values: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> dict[str, float]:
    """Return the importance of each key, the largest first: from 0, no more than chance, to 1, it decides alone.

    This is the effect size of the test of Kruskal and Wallis (1952): trials are put into groups by the key's value, and
    the share of the variance of their ranks that lies between the groups is taken, less what as many groups made by
    chance are expected to have. It is 0 where that is negative. Keys act alone here: what only two of them do together
    is not seen.

    values   of each trial, by dotted key; numbers of many values are put into three groups of equal size
    scores   of each trial; low ones are better, and trials that failed share infinity, the worst
    Empty for fewer than six trials; without a key whose groups are as many as the trials.
    """
    if len(scores) < LEAST:
        return {}
    ranks = _mid_ranks(scores)
    found = {}
    for key in dict.fromkeys(key for each in values for key in each):
        groups: dict[object, list[float]] = {}
        for group, rank in zip(_groups([each.get(key) for each in values]), ranks, strict=True):
            groups.setdefault(group, []).append(rank)
        if 1 < len(groups) < len(ranks):
            found[key] = _effect([*groups.values()])
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _effect(groups: Sequence[Sequence[float]]) -> float:
    """Return the share of the variance between groups, less what is expected of chance; at least 0."""
    ranks = [rank for group in groups for rank in group]
    count, mean = len(ranks), sum(ranks) / len(ranks)
    whole = sum((rank - mean) ** 2 for rank in ranks)
    between = sum(len(group) * (sum(group) / len(group) - mean) ** 2 for group in groups)
    share = between / whole if whole else 0.0
    return max(0.0, 1 - (1 - share) * (count - 1) / (count - len(groups)))


def _mid_ranks(scores: Sequence[float]) -> list[float]:
    """Return the rank of each score, from 1; equal scores share the mean of their ranks."""
    ordered = sorted(scores)
    first = {score: ordered.index(score) for score in set(scores)}
    return [first[score] + (ordered.count(score) + 1) / 2 for score in scores]


def _groups(values: Sequence[Any]) -> list[object]:
    """Return the group of each value: the value itself, or its third where there are many numbers."""
    distinct = sorted({value for value in values if _is_number(value)})
    if len(distinct) <= BINS or not all(map(_is_number, values)):
        return [json.dumps(value, sort_keys=True) for value in values]
    ordered = sorted(values)
    return [ordered.index(value) * BINS // len(ordered) for value in values]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
