"""Samples of a space: pure functions of seed and number, of the right kind, spread as asked."""

from __future__ import annotations

import math
from typing import Any

import pytest

from launch.sweep.search.space import samples, wrong_axis

SPACE: dict[str, Any] = {
    "optimizer.lr": {"min": 1e-4, "max": 1, "log": True},
    "train.batch_size": {"min": 1, "max": 8},
    "train.clip_grad_norm": {"min": 0.25, "max": 0.75},
    "model": [{"name": "resnet18"}, {"name": "vgg16", "width": 0.25}, None],
}


def test_a_sample_depends_on_seed_number_and_key_alone() -> None:
    long = samples(SPACE, 0, 64)
    assert samples(SPACE, 0, 8) == long[:8]
    assert samples(SPACE, 1, 8) != long[:8]
    alone = samples({"optimizer.lr": SPACE["optimizer.lr"]}, 0, 8)
    assert [sample["optimizer.lr"] for sample in alone] == [sample["optimizer.lr"] for sample in long[:8]]
    assert long[0] == samples(dict(reversed(SPACE.items())), 0, 1)[0]


def test_values_of_an_earlier_version_stay() -> None:
    """A search goes on after an update of this software: its samples must be the same."""
    assert samples({key: SPACE[key] for key in ("optimizer.lr", "train.batch_size")}, 7, 2) == [
        {"optimizer.lr": 0.008008, "train.batch_size": 2},
        {"optimizer.lr": 0.006238, "train.batch_size": 1},
    ]


def test_kinds_ranges_and_spread() -> None:
    found = samples(SPACE, 3, 1000)
    for sample in found:
        assert type(sample["optimizer.lr"]) is float
        assert 1e-4 <= sample["optimizer.lr"] <= 1
        assert float(f"{sample['optimizer.lr']:.4g}") == sample["optimizer.lr"]
        assert type(sample["train.batch_size"]) is int
        assert 0.25 <= sample["train.clip_grad_norm"] <= 0.75
    sizes = [sample["train.batch_size"] for sample in found]
    models = [str(sample["model"]) for sample in found]
    assert {sizes.count(size) > 80 for size in range(1, 9)} == {True}  # of 125 expected, 4 deviations away
    assert {models.count(str(model)) > 270 for model in SPACE["model"]} == {True}  # of 333
    decades = [math.floor(math.log10(sample["optimizer.lr"])) for sample in found]
    assert {decades.count(decade) > 195 for decade in range(-4, 0)} == {True}  # of 250
    assert sum(sample["train.clip_grad_norm"] < 0.5 for sample in found) == pytest.approx(500, abs=65)


def test_samples_differ_and_end_where_the_space_ends() -> None:
    small: dict[str, Any] = {"seed": [1, 2, 3], "train.batch_size": {"min": 4, "max": 5}}
    found = samples(small, 0, 100)
    assert sorted((sample["seed"], sample["train.batch_size"]) for sample in found) == [
        (seed, size) for seed in (1, 2, 3) for size in (4, 5)
    ]


def test_a_narrow_range_has_more_digits() -> None:
    """Four of them would leave eleven values of this one, and one of the next; a range as before has what it had."""
    for low, high in ((0.999, 0.99999), (0.99999, 0.999999), (-1.00002, -1.00001)):
        axis = {"min": low, "max": high}
        found = [sample["a"] for sample in samples({"a": axis}, 0, 60)]
        assert len(found) == 60
        assert min(found) >= low
        assert max(found) <= high
    assert samples({"a": {"min": 0.9, "max": 0.99}}, 0, 1) == [{"a": 0.9741}]


def test_a_range_wider_than_numbers_is_refused() -> None:
    assert [str(m) for m in wrong_axis("a", {"min": -1e308, "max": 1e308})] == [
        "a: got -1e+308 to 1e+308, which is wider than numbers are"
    ]
