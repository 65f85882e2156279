"""The importance of the keys that a search varies."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from scipy.stats import kruskal

from launch.sweep.search.importance import importances


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_effect_size_of_scipys_kruskal(seed: int) -> None:
    """(H - groups + 1) / (trials - groups), with ties; a number of many values counts as three equal groups."""
    draw = random.Random(seed)
    values: list[dict[str, Any]] = [{"choice": draw.choice("ab"), "number": draw.random()} for _ in range(30)]
    scores = [round(draw.random(), 1) + (each["choice"] == "a") for each in values]
    third = {each["number"]: place // 10 for place, each in enumerate(sorted(values, key=lambda v: v["number"]))}
    groups_of = {
        "choice": [[s for v, s in zip(values, scores, strict=True) if v["choice"] == name] for name in "ab"],
        "number": [[s for v, s in zip(values, scores, strict=True) if third[v["number"]] == n] for n in range(3)],
    }
    expected = {}
    for key, groups in groups_of.items():
        statistic = kruskal(*groups).statistic
        expected[key] = max(0.0, (statistic - len(groups) + 1) / (30 - len(groups)))
    assert importances(values, scores) == pytest.approx(expected)


def test_a_key_that_decides_is_told_from_one_that_does_not() -> None:
    """The best learning rate lies in the middle, and large ones fail, which share the last rank."""
    values: list[dict[str, Any]] = [
        {"lr": 10 ** (-i / 4), "seed": i * 7 % 16, "name": ["x", {"y": 1}][i % 2]} for i in range(16)
    ]
    scores = [math.inf if each["lr"] > 0.5 else abs(math.log10(each["lr"]) + 2) for each in values]
    found = importances(values, scores)
    assert next(iter(found)) == "lr"
    assert found["lr"] > 0.5
    assert max(found["seed"], found["name"]) < 0.2


@pytest.mark.parametrize("count", [0, 1, 5])
def test_of_few_trials_nothing_is_said(count: int) -> None:
    assert importances([{"lr": i} for i in range(count)], [float(i) for i in range(count)]) == {}


def test_keys_of_which_nothing_can_be_said_are_left_out() -> None:
    """One value only, and as many choices as trials. Where all trials are equally good, nothing matters."""
    values = [{"same": 1, "unique": f"m{i}", "lr": float(i)} for i in range(6)]
    assert importances(values, [0.5] * 6) == {"lr": 0.0}
