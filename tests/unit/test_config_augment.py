"""The keys of `data.augment`: wrong values, and what a policy's name alone means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainlib.config import load_config
from trainlib.config.schema.values import POLICY_ARGUMENTS
from trainlib.data.augment.policies.policy import AugMix, RandAugment
from trainlib.errors import ConfigError
from trainlib.training.build.augmentation import POLICIES, build_augmentation


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "data: {augment: {policy: trival}}",
            'data.augment.policy: got "trival", must be trivial, randaugment, autoaugment or augmix, one with '
            "arguments, {name: randaugment, num_ops: 3}, or null; did you mean trivial?",
        ),
        (
            "data: {augment: {policy: {name: augmix, severity: 11}}}",
            "data.augment.policy.severity: got 11, must be <= 10",
        ),
        (
            "data: {augment: {policy: {name: autoaugment, num_ops: 2}}}",
            "data.augment.policy.num_ops: is an argument of randaugment, and autoaugment takes policy: leave it out",
        ),
        ("data: {augment: {color_jitter: {hue: 0.6}}}", "data.augment.color_jitter.hue: got 0.6, must be <= 0.5"),
        ("data: {augment: {erase: 1.5}}", "data.augment.erase: got 1.5, must be <= 1"),
        (
            "data: {augment: {cutmix: 1.0}}\ntrain: {batch_size: 1}",
            "data.augment.cutmix: got 1.0, but train.batch_size is 1, and samples are mixed with others of their "
            "batch: set 0",
        ),
    ],
)
def test_a_wrong_value_is_one_mistake(tmp_path: Path, text: str, error: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_config([str(file)])
    (mistake,) = raised.value.mistakes
    assert str(mistake).startswith(error)


@pytest.mark.parametrize("name", POLICY_ARGUMENTS)
def test_a_name_alone_means_the_defaults(name: str) -> None:
    by_name = load_config(["quickstart", f"data.augment.policy={name}"])
    (policy,) = build_augmentation(by_name).changes
    assert policy == POLICIES[name]()  # whose defaults are torchvision's
    arguments: dict[str, Any] = {"name": name, **POLICY_ARGUMENTS[name]}
    whole = load_config(["quickstart", {"data": {"augment": {"policy": arguments}}}])
    assert whole.data.augment.policy == by_name.data.augment.policy


def test_an_argument_is_added_to_a_policy_that_is_a_name() -> None:
    named: dict[str, Any] = {"data": {"augment": {"policy": "randaugment"}}}
    (policy,) = build_augmentation(load_config(["quickstart", named, "data.augment.policy.magnitude=15"])).changes
    assert policy == RandAugment(magnitude=15)


def test_another_policy_starts_afresh() -> None:
    first: dict[str, Any] = {"data": {"augment": {"policy": {"name": "randaugment", "num_ops": 3}}}}
    config = load_config(["quickstart", first, {"data": {"augment": {"policy": {"name": "augmix"}}}}])
    (policy,) = build_augmentation(config).changes
    assert policy == AugMix(severity=3, mixture_width=3, alpha=1.0)
