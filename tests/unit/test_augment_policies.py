"""What policies, colour jitter and erasing draw: torchvision's spaces, uniformly, and applied as torchvision does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from trainlib.data.augment.augmentation import Augmentation
from trainlib.data.augment.draws import Draws
from trainlib.data.augment.erase import draw_boxes, erase
from trainlib.data.augment.mix import Mixing, mix
from trainlib.data.augment.policies.autoaugment import POLICIES
from trainlib.data.augment.policies.jitter import ColorJitter
from trainlib.data.augment.policies.operations import Operation, Operations
from trainlib.data.augment.policies.policy import (
    AugMix,
    AutoAugment,
    RandAugment,
    TrivialAugment,
    apply_stages,
    mix_chains,
)

NAMES = {operation: operation.name.replace("_", "").lower() for operation in Operation}
HEIGHT, WIDTH = 60, 48
DRAWS = Draws(5, torch.arange(20_000))


def torchvision_arguments(transform: Any, bins: int, magnitude: int | None) -> dict[str, set[float]]:
    """The arguments that torchvision's policy may give to each operation, in the terms of `Operation`."""
    found = {}
    for name, (magnitudes_of, signed) in transform._AUGMENTATION_SPACE.items():
        magnitudes = magnitudes_of(bins, HEIGHT, WIDTH)
        chosen = [0.0] if magnitudes is None else [float(m) for m in magnitudes]
        chosen = chosen if magnitude is None or magnitudes is None else [chosen[magnitude]]
        signs = (1, -1) if signed else (1,)
        values = {sign * value for sign in signs for value in chosen}
        if name in ("Brightness", "Color", "Contrast", "Sharpness"):
            values = {1.0 + value for value in values}
        elif name.startswith("Translate"):
            values = {float(int(value)) for value in values}
        elif name == "Solarize":
            values = {255.0 * value for value in values}
        found[name.lower()] = values
    return found


def drawn_arguments(stages: list[Operations]) -> dict[str, set[float]]:
    found: dict[str, set[float]] = {}
    for stage in stages:
        for operation in stage.operations_N.unique().tolist():
            of_it = stage.arguments_N[stage.operations_N == operation]
            found.setdefault(NAMES[Operation(operation)], set()).update(of_it.tolist())
    return found


def assert_uniform(counts: torch.Tensor) -> None:
    """Within five standard deviations of a chi-square distribution."""
    expected = counts.sum() / len(counts)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(counts) - 1
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_trivial_augment_draws_from_the_space_of_torchvision() -> None:
    stages = TrivialAugment().draw(DRAWS, HEIGHT, WIDTH)
    assert drawn_arguments(stages) == torchvision_arguments(v2.TrivialAugmentWide(), 31, None)
    assert_uniform(torch.bincount(stages[0].operations_N)[:14])


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_randaugment_draws_from_the_space_of_torchvision(magnitude: int) -> None:
    stages = RandAugment(num_ops=3, magnitude=magnitude).draw(DRAWS, HEIGHT, WIDTH)
    assert len(stages) == 3
    assert drawn_arguments(stages) == torchvision_arguments(v2.RandAugment(magnitude=magnitude), 31, magnitude)
    pairs = stages[0].operations_N * 14 + stages[1].operations_N  # independent of each other
    assert_uniform(torch.bincount(pairs, minlength=14 * 14))


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
def test_autoaugment_has_the_pairs_of_torchvision(name: str) -> None:
    expected = v2.AutoAugment(v2.AutoAugmentPolicy(name))._policies
    ours = [[(NAMES[c.operation], c.probability, c.magnitude) for c in pair] for pair in POLICIES[name]]
    assert ours == [[(op.lower(), probability, bin_ or 0) for op, probability, bin_ in pair] for pair in expected]
    stages = AutoAugment(name).draw(DRAWS, HEIGHT, WIDTH)
    space = torchvision_arguments(v2.AutoAugment(), 10, None)
    for operation, arguments in drawn_arguments(stages).items():
        assert operation == "identity" or arguments <= space[operation]
    shares = [float((stage.operations_N != Operation.IDENTITY).double().mean()) for stage in stages]
    for stage, share in enumerate(shares):
        assert share == pytest.approx(sum(pair[stage][1] for pair in expected) / 25, abs=0.015)


def test_augmix_draws_from_the_space_of_torchvision() -> None:
    chains, weights = AugMix(severity=3, mixture_width=2).draw(DRAWS, HEIGHT, WIDTH)
    full = torchvision_arguments(v2.AugMix(), 10, None)
    for stages in chains:
        lengths = sum((stage.operations_N != Operation.IDENTITY).long() for stage in stages)
        assert_uniform(torch.bincount(torch.as_tensor(lengths), minlength=4)[1:])
        for operation, arguments in drawn_arguments(stages).items():
            assert operation == "identity" or arguments <= full[operation]
    assert weights.shape == (20_000, 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(20_000, dtype=torch.float64))
    assert weights.mean(0).tolist() == pytest.approx([0.5, 0.25, 0.25], abs=0.01)


def test_augmix_mixes_as_torchvision_does() -> None:
    """With the same chains and weights: the sum in float32, in the same order."""
    images = torch.randint(0, 256, (50, 3, 20, 16), dtype=torch.uint8)
    chains, weights = AugMix().draw(Draws(1, torch.arange(50)), 20, 16)
    mixed = mix_chains(images, chains, weights)
    for i, image in enumerate(images):
        expected = weights[i, 0].float() * image
        for chain, weight in zip(chains, weights[i, 1:], strict=True):
            own = [Operations(stage.operations_N[i : i + 1], stage.arguments_N[i : i + 1]) for stage in chain]
            expected.add_(weight.float() * apply_stages(images[i : i + 1], own)[0])
        assert torch.equal(mixed[i], expected.to(torch.uint8))


@pytest.mark.parametrize("amounts", [{"brightness": 0.4, "hue": 0.1}, {"contrast": 0.3, "saturation": 1.5}])
def test_colour_jitter_draws_torchvisions_ranges_in_any_order(amounts: dict[str, float]) -> None:
    stages = ColorJitter(**amounts).draw(DRAWS)
    assert len(stages) == len(amounts)
    assert_uniform(torch.bincount(stages[0].operations_N)[torch.bincount(stages[0].operations_N) > 0])
    transform = v2.ColorJitter(**amounts)
    names = {"brightness": "brightness", "contrast": "contrast", "color": "saturation", "hue": "hue"}
    for operation, arguments in drawn_arguments(stages).items():
        low, high = getattr(transform, names[operation])
        assert low <= min(arguments) < low + (high - low) / 500
        assert high - (high - low) / 500 < max(arguments) <= high


def test_erasing_boxes_are_distributed_as_those_of_torchvision() -> None:
    count, size = 3000, 40
    ours = draw_boxes(Draws(3, torch.arange(count)), 1.0, size, size)
    transform = v2.RandomErasing(p=1.0)
    image = torch.zeros(3, size, size)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # else some other test's draws decide whether the means are near enough
        theirs = torch.tensor([[transform.make_params([image])[key] for key in "ijhw"] for _ in range(count)])
    for mine, other in zip(ours.double().unbind(1), theirs.double().unbind(1), strict=True):
        assert float(mine.mean()) == pytest.approx(float(other.mean()), rel=0.05)
        assert float(mine.std()) == pytest.approx(float(other.std()), rel=0.06)
    assert (ours[:, :2] + ours[:, 2:]).max() <= size
    some = draw_boxes(Draws(3, torch.arange(count)), 0.25, size, size)
    assert float((some[:, 2] > 0).double().mean()) == pytest.approx(0.25, abs=0.04)


def test_erasing_is_torchvisions_with_the_same_box() -> None:
    values = torch.randn(40, 3, 20, 28)
    boxes = draw_boxes(Draws(3, torch.arange(40)), 0.5, 20, 28)
    erased = erase(values.clone(), boxes)
    for image, result, (i, j, h, w) in zip(values, erased, boxes.tolist(), strict=True):
        assert torch.equal(result, v2.functional.erase(image, i, j, h, w, torch.zeros(1, 1, 1)))


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_weights_have_the_moments_of_their_distribution(alpha: float) -> None:
    weights = DRAWS.dirichlet("any", 2, 2, alpha)[:, :, 0]
    assert float(weights.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(weights.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.04)
    ranks = torch.corrcoef(weights.T)[0, 1]
    assert abs(float(ranks)) < 0.04


def test_draws_at_the_edge_of_what_an_alpha_may_be_are_numbers() -> None:
    for alpha in (5e-324, 1e-300, 1e-5, 1e6, 1e300):
        weights = DRAWS.dirichlet("any", 1, 3, alpha)
        assert bool(((weights >= 0) & (weights <= 1)).all()), alpha


CHANGES: list[Any] = [TrivialAugment(), RandAugment(), AutoAugment(), AugMix(), ColorJitter(0.4, 0.4, 0.4, 0.1)]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: type(change).__name__)
def test_a_change_depends_on_seed_epoch_and_sample_alone(change: Any) -> None:
    images, ids = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8), torch.arange(100, 124)
    augmentation = Augmentation(1, True, 0, vertical_flip=True, changes=(change,))
    whole = augmentation(images, ids, 3)
    order = torch.randperm(24)
    assert torch.equal(augmentation(images[order], ids[order], 3), whole[order])
    pieces = [augmentation(images[i : i + 5], ids[i : i + 5], 3) for i in range(0, 24, 5)]
    assert torch.equal(torch.cat(pieces), whole)
    assert not torch.equal(augmentation(images, ids, 4), whole)
    assert not torch.equal(augmentation(images, ids + 2**32, 3), whole)  # the sample's next use in the epoch


def test_nothing_waits_for_a_device() -> None:
    """Images without values: whatever asks for one raises an error."""
    changes = tuple(CHANGES)
    for change in CHANGES:
        change(torch.empty(9, 3, 16, 16, dtype=torch.uint8), Draws(1, torch.arange(9)))  # fills what is cached
    augmentation = Augmentation(1, True, 2, "reflect", True, changes, 0.5)
    images, ids = torch.empty(9, 3, 16, 16, dtype=torch.uint8, device="meta"), torch.arange(9)
    changed = augmentation(images, ids.to("meta"), 0, ids)
    assert changed.shape == images.shape
    values = augmentation.erase(changed.float(), ids, 0)
    assert mix(values, Mixing(1, 0.2).draw(0, 16, 16)).shape == (8, 3, 16, 16)
    assert mix(values, Mixing(1, 0.0, 1.0).draw(0, 16, 16)).shape == (8, 3, 16, 16)
