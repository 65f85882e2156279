"""Trainings with all augmentations on: the same for any number of ranks, and after a stop at any step."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
from fit_parts import fit
from soak import only_in_soak
from stopping import STEPS, VGG, train_until

import trainlib
from trainlib.data.augment.custom import Transform
from trainlib.errors import EXIT_STOPPED, ConfigError, UserError
from trainlib.randomness import draw

MIXED = "{flip: true, vertical_flip: true, crop_padding: 2, erase: 0.5, mixup: 0.4, cutmix: 1, policy: POLICY, JITTER}"
JITTER = "color_jitter: {brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}"


def all_on(policy: str = "randaugment") -> str:
    return "data.augment=" + MIXED.replace("POLICY", policy).replace("JITTER", JITTER)


CNN = [
    *VGG,
    "model={name: cifar10_cnn}",
    "optimizer={name: SGD, lr: 0.01, momentum: 0.9}",
    "train={epochs: 2, batch_size: 12}",
    "data.repeats=2",
]
WEIGHTED = "loss={name: CrossEntropyLoss, label_smoothing: 0.1, weight: [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]}"


def trained(parent: Path, world_size: int, arguments: list[str]) -> Path:
    cwd = tiny.in_folder(parent, str(world_size))
    assert ranks.train(arguments, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
    return cwd


@pytest.mark.parametrize(
    ("policy", "changes", "world_sizes"),
    [
        ("randaugment", [WEIGHTED, "train.micro_batch_size=2"], (1, 2)),
        pytest.param("trivial", [WEIGHTED], (1, 2, 4), marks=only_in_soak),
        pytest.param("augmix", ["loss={name: BCELoss}", "train.micro_batch_size=3"], (1, 2, 4), marks=pytest.mark.slow),
        pytest.param("autoaugment", ["loss={name: MSELoss}"], (1, 2, 4), marks=only_in_soak),
    ],
)
def test_losses_do_not_depend_on_the_world_size(
    tmp_path: Path, policy: str, changes: list[str], world_sizes: tuple[int, ...]
) -> None:
    first, *others = [trained(tmp_path, size, [*CNN, all_on(policy), *changes]) for size in world_sizes]
    alone = tiny.rows(first)
    assert any(row.get("scope") == "step" for row in alone)
    for other in others:
        for ours, expected in zip(tiny.rows(other), alone, strict=True):
            assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-5)
            for key in ("step", "split", "count"):
                assert ours[key] == expected[key]


@pytest.mark.parametrize(
    ("policy", "world_sizes"),
    [
        pytest.param("augmix", (1, 3), marks=only_in_soak),
        pytest.param("randaugment", (1, 4), marks=pytest.mark.slow),
        pytest.param("autoaugment", (1, 2, 8), marks=only_in_soak),
    ],
)
def test_elastic_runs_have_one_digest(tmp_path: Path, policy: str, world_sizes: tuple[int, ...]) -> None:
    elastic = ["train.reproducibility=elastic", "train.micro_batch_size=1", WEIGHTED]
    runs = [trained(tmp_path, size, [*CNN, all_on(policy), *elastic]) for size in world_sizes]
    assert len({tiny.digest(cwd) for cwd in runs}) == 1
    for cwd in runs[1:]:
        assert tiny.rows(cwd) == tiny.rows(runs[0])


@pytest.mark.parametrize(
    ("world_size", "steps"),
    [
        (1, [7]),
        pytest.param(2, [4], marks=pytest.mark.slow),
        pytest.param(2, range(1, STEPS - 1), marks=only_in_soak),
    ],
    ids=["1-rank-at-one-step", "2-ranks-at-one-step", "2-ranks"],
)
def test_stopping_at_any_step_changes_no_bit(tmp_path: Path, world_size: int, steps: Iterable[int]) -> None:
    arguments = [*VGG, all_on()]
    whole = trained(tmp_path, world_size, arguments)
    for step in steps:
        cwd = tiny.in_folder(tmp_path, f"stopped-at-{step}")
        codes = ranks.run(train_until, arguments, step, world_size=world_size, cwd=cwd)
        assert codes == [EXIT_STOPPED] * world_size, ranks.console(cwd)
        assert ranks.train(arguments, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
        assert tiny.digest(cwd) == tiny.digest(whole)
        assert tiny.rows(cwd) == tiny.rows(whole)


@trainlib.transform
def darken(images: Any, indices: Any, key: int) -> Any:
    """Halve the values of half of the images."""
    return images >> (draw(key, indices) & 1).to(images.dtype).view(-1, 1, 1, 1)


def invert(images: Any, indices: Any, key: int) -> Any:
    return 255 - images


def digest_of(transform: Transform | None, **data: Any) -> str:
    run = fit({"data": {"augment": {"mixup": 0.2, **data}}}, transform=transform, fresh=True)
    return str(run.summary()["weights_sha256"])


def test_a_transform_of_ones_own_and_a_custom_loss_with_mixing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dark = digest_of(darken)
    assert digest_of(darken) == dark
    assert digest_of(None) != dark
    with pytest.raises(UserError, match=r"data.augment.custom"):  # another one is another configuration
        fit({"data": {"augment": {"mixup": 0.2}}}, transform=invert)
    fit({"data": {"augment": {"mixup": 0.2}}}, transform=darken, fresh=True)
    with pytest.raises(ConfigError, match=r"data.augment.custom: got custom:darken, which was given in Python"):
        trainlib.fit("runs/own/config.yaml")
