"""The objective: torch's own numbers on a whole batch, and an exact sum over its parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 the field's own name

from trainlib.config import LossConfig
from trainlib.data.targets import Targets
from trainlib.errors import UserError
from trainlib.models.losses import Objective, check_class_weights, count_correct, weights_by_class

CPU = torch.device("cpu")
NUM_CLASSES = 5
PARTS = (1, 7, 2, 6)  # uneven; 16 samples
CLASS_WEIGHTS = [0.5, 1.0, 2.0, 0.25, 3.0]

LOSSES: list[dict[str, Any]] = [
    {"name": "CrossEntropyLoss", "activation": "none"},
    {"name": "CrossEntropyLoss", "activation": "none", "weight": CLASS_WEIGHTS},
    {"name": "CrossEntropyLoss", "activation": "none", "label_smoothing": 0.1},
    {"name": "CrossEntropyLoss", "activation": "none", "label_smoothing": 0.1, "weight": CLASS_WEIGHTS},
    {"name": "CrossEntropyLoss", "activation": "none", "ignore_index": 2},
    {"name": "CrossEntropyLoss", "activation": "none", "ignore_index": 2, "label_smoothing": 0.1},
    {
        "name": "CrossEntropyLoss",
        "activation": "none",
        "ignore_index": 2,
        "label_smoothing": 0.1,
        "weight": CLASS_WEIGHTS,
    },
    {"name": "NLLLoss", "activation": "log_softmax"},
    {"name": "NLLLoss", "activation": "log_softmax", "weight": CLASS_WEIGHTS, "ignore_index": 0},
    {"name": "BCELoss", "activation": "sigmoid"},
    {"name": "BCELoss", "activation": "softmax", "weight": CLASS_WEIGHTS},
    {"name": "BCEWithLogitsLoss", "activation": "none"},
    {"name": "BCEWithLogitsLoss", "activation": "none", "weight": CLASS_WEIGHTS, "pos_weight": CLASS_WEIGHTS[::-1]},
    {"name": "L1Loss", "activation": "softmax"},
    {"name": "SmoothL1Loss", "activation": "sigmoid", "beta": 0.5},
    {"name": "HuberLoss", "activation": "none", "delta": 0.7},
    {"name": "MSELoss", "activation": "softmax"},
    {"name": "MultiMarginLoss", "activation": "none"},
    {"name": "MultiMarginLoss", "activation": "none", "p": 2, "margin": 0.5, "weight": CLASS_WEIGHTS},
]
DENSE = {"BCELoss", "BCEWithLogitsLoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "MSELoss"}


def identify(section: dict[str, Any]) -> str:
    return "-".join([section["name"], section["activation"], *sorted(section.keys() - {"name", "activation"})])


def test_a_threshold_makes_the_classes_of_a_mixture_present_or_absent() -> None:
    """As timm's loss does of the targets of its MixUp: a class that an image is mixed of with itself stays present."""
    timm = pytest.importorskip("timm.loss")
    generator = torch.Generator().manual_seed(4)
    logits_NC = torch.randn(12, NUM_CLASSES, generator=generator)
    labels_N, others_N = (torch.randint(0, NUM_CLASSES, (12,), generator=generator) for _ in range(2))
    assert (labels_N == others_N).any()
    config = LossConfig.model_validate({"name": "BCEWithLogitsLoss", "activation": "none", "target_threshold": 0.2})
    ours, peer = Objective(config, NUM_CLASSES, CPU), timm.BinaryCrossEntropy(smoothing=0.0, target_threshold=0.2)
    for weight in (1.0, 0.85, 0.5, 0.25, 0.15, 0.0):
        shares_NC = weight * F.one_hot(labels_N, NUM_CLASSES) + (1 - weight) * F.one_hot(others_N, NUM_CLASSES)
        targets = Targets(labels_N, labels_N).mixed_with(Targets(others_N, others_N), weight)
        loss, denominator = ours.of(logits_NC, targets)
        assert loss is not None
        assert float(loss) == pytest.approx(float(peer(logits_NC, shares_NC)), rel=1e-6)
        parts = [ours.of(part_NC, part) for part_NC, part in zip(logits_NC.split(5), targets.split(5), strict=True)]
        total = sum(float(of_part) * share for of_part, share in parts if of_part is not None)
        assert total / denominator == pytest.approx(float(loss), rel=1e-5)
    assert float(ours(logits_NC, labels_N)) == pytest.approx(float(peer(logits_NC, F.one_hot(labels_N, 5).float())))


all_losses = pytest.mark.parametrize("section", LOSSES, ids=identify)
all_reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


def objective(**section: Any) -> Objective:
    return Objective(LossConfig.model_validate(section), NUM_CLASSES, CPU)


def samples(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits_NC = torch.randn(sum(PARTS), NUM_CLASSES, dtype=dtype, generator=generator)
    labels_N = torch.randint(NUM_CLASSES, (sum(PARTS),), generator=generator)
    labels_N[0] = 1  # the part of a single sample is not an ignored one
    return logits_NC.requires_grad_(), labels_N


def plain_torch(section: dict[str, Any], reduction: str, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """The loss as anyone would write it with torch.nn."""
    args = {key: value for key, value in section.items() if key not in ("name", "activation")}
    for key in ("weight", "pos_weight"):
        if key in args:
            args[key] = torch.tensor(args[key])
    activations: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda x: x,
        "sigmoid": torch.sigmoid,
        "softmax": nn.Softmax(dim=1),
        "log_softmax": nn.LogSoftmax(dim=1),
    }
    inputs = activations[section["activation"]](logits_NC)
    targets = F.one_hot(labels_N, NUM_CLASSES).float() if section["name"] in DENSE else labels_N
    loss: Tensor = getattr(nn, section["name"])(reduction=reduction, **args)(inputs, targets)
    return loss


@all_losses
@all_reductions
def test_whole_batch_is_bitwise_torch(section: dict[str, Any], reduction: str) -> None:
    logits_NC, labels_N = samples(torch.float32)
    expected = plain_torch(section, reduction, logits_NC, labels_N).mean()  # of a scalar: itself
    (expected_gradient,) = torch.autograd.grad(expected, logits_NC)
    loss = objective(**section, reduction=reduction)(logits_NC, labels_N)
    (gradient,) = torch.autograd.grad(loss, logits_NC)
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, expected_gradient)


@all_losses
@all_reductions
def test_parts_add_up_to_the_whole(section: dict[str, Any], reduction: str) -> None:
    the_loss = objective(**section, reduction=reduction)
    assert isinstance(the_loss.module, nn.Module)
    the_loss.module.double()
    logits_NC, labels_N = samples(torch.float64)
    whole = the_loss(logits_NC, labels_N)
    (whole_gradient,) = torch.autograd.grad(whole, logits_NC)

    denominator = the_loss.denominator(labels_N)
    shares = [
        the_loss(part_NC, part_N) * (the_loss.denominator(part_N) / denominator)
        for part_NC, part_N in zip(logits_NC.split(PARTS), labels_N.split(PARTS), strict=True)
        if the_loss.denominator(part_N)
    ]
    total = torch.stack(shares).sum()
    (gradient,) = torch.autograd.grad(total, logits_NC)
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-12, atol=1e-12)


@all_losses
@all_reductions
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_mixed_sample_counts_as_parts_of_two_samples(section: dict[str, Any], reduction: str, weight: float) -> None:
    """However a batch is cut: losses and denominators are weighted sums over both labels."""
    the_loss = objective(**section, reduction=reduction)
    assert isinstance(the_loss.module, nn.Module)
    the_loss.module.double()
    logits_NC, labels_N = samples(torch.float64)
    others_N = labels_N.roll(1)
    targets = Targets(labels_N, labels_N).mixed_with(Targets(others_N, others_N), weight)
    whole, denominator = the_loss.of(logits_NC, targets)
    assert denominator == pytest.approx(the_loss.denominator(labels_N))  # what the trainer divides by
    expected = weight * the_loss(logits_NC, labels_N) + (1 - weight) * the_loss(logits_NC, others_N)
    torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12)
    shares = []
    for part_NC, part_N, other_N in zip(
        logits_NC.split(PARTS), labels_N.split(PARTS), others_N.split(PARTS), strict=True
    ):
        part = Targets(part_N, part_N).mixed_with(Targets(other_N, other_N), weight)
        loss, share = the_loss.of(part_NC, part)
        assert (loss is None) == (share == 0)
        shares += [] if loss is None else [loss * share / denominator]
    torch.testing.assert_close(torch.stack(shares).sum(), whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"name": "CrossEntropyLoss", "activation": "none"}, math.log(1 + math.exp(-2))),
        ({"name": "NLLLoss", "activation": "log_softmax"}, math.log(1 + math.exp(-2))),
        # softmax of (2, 0) is (a, 1 - a) with a = 1 / (1 + e^-2); the target is (1, 0)
        ({"name": "L1Loss", "activation": "softmax"}, 1 - 1 / (1 + math.exp(-2))),
        ({"name": "MSELoss", "activation": "none"}, ((2 - 1) ** 2 + 0) / 2),
        ({"name": "MSELoss", "activation": "none", "reduction": "sum"}, (2 - 1) ** 2),
        ({"name": "HuberLoss", "activation": "none", "delta": 0.5}, (0.5 * (1 - 0.25) + 0) / 2),
        ({"name": "MultiMarginLoss", "activation": "none", "margin": 3.0}, (3 - 2 + 0) / 2),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_numbers_worked_by_hand(section: dict[str, Any], expected: float) -> None:
    """One sample of class 0 with logits (2, 0)."""
    the_loss = Objective(LossConfig.model_validate(section), 2, CPU)
    loss = the_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"name": "CrossEntropyLoss"}, 4.0),
        ({"name": "CrossEntropyLoss", "reduction": "sum"}, 1.0),
        ({"name": "CrossEntropyLoss", "weight": CLASS_WEIGHTS}, 0.5 + 2.0 + 2.0 + 3.0),
        ({"name": "CrossEntropyLoss", "weight": CLASS_WEIGHTS, "ignore_index": 2}, 0.5 + 3.0),
        ({"name": "CrossEntropyLoss", "weight": CLASS_WEIGHTS, "reduction": "none"}, 4.0),
        ({"name": "NLLLoss", "ignore_index": 0}, 3.0),
        ({"name": "MultiMarginLoss", "weight": CLASS_WEIGHTS}, 4.0),
        ({"name": "MSELoss"}, 4.0),
    ],
)
def test_denominator(section: dict[str, Any], expected: float) -> None:
    assert objective(**section, activation="none").denominator(torch.tensor([0, 2, 2, 4])) == expected


def test_denominator_of_ignored_samples_alone_is_zero() -> None:
    assert objective(name="CrossEntropyLoss", ignore_index=2).denominator(torch.tensor([2, 2])) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loss_is_float32_for_narrower_logits(dtype: torch.dtype) -> None:
    logits_NC, labels_N = samples(torch.float32)
    narrow_NC = logits_NC.detach().to(dtype)
    loss = objective(name="CrossEntropyLoss", activation="none")(narrow_NC, labels_N)
    assert torch.equal(loss, F.cross_entropy(narrow_NC.float(), labels_N))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"weight": [1.0, 2.0, 3.0]}, "loss.weight: got 3 numbers, must be a list of 5, one for each class"),
        ({"weight": 2.0}, "loss.weight: got 2.0, must be a list of 5, one for each class"),
        (
            {"name": "BCEWithLogitsLoss", "pos_weight": [1.0] * 6},
            "loss.pos_weight: got 6 numbers, must be a list of 5, one for each class",
        ),
        ({"name": "MultiMarginLoss", "p": 3}, "loss MultiMarginLoss: only p == 1 and p == 2 supported"),
        ({"label_smoothing": 1.5}, "loss CrossEntropyLoss: label_smoothing must be between 0.0 and 1.0. Got: 1.5"),
        ({"weight": [1.0, 2.0, 3.0, 4.0, "x"]}, "loss.weight: got .* each must be a number"),
    ],
)
def test_refused_values_are_told(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective(**section)


def test_lists_by_position_are_told_with_their_classes() -> None:
    section = {"weight": [1.0, 0.0, 2.5], "ignore_index": 1}
    assert weights_by_class(LossConfig.model_validate(section), ("0", "1", "10")) == [
        "loss.weight by class: '0' 1, '1' 0 (counts for nothing), '10' 2.5",
        "loss.ignore_index: samples of class '1' count for nothing",
    ]
    assert weights_by_class(LossConfig(), ("0", "1")) == []


@pytest.mark.parametrize("section", [{"weight": [0.0, 1.0, 0.0, 0.0, 0.0]}, {"ignore_index": 3}])
def test_training_samples_that_all_count_for_nothing_are_refused(section: dict[str, Any]) -> None:
    the_loss = objective(**section)
    check_class_weights(the_loss, torch.tensor([1, 3]))
    with pytest.raises(UserError, match="all training samples have weight 0"):
        check_class_weights(the_loss, torch.tensor([3, 3]))


def test_correct_counts_the_hits() -> None:
    logits_NC = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    num_correct = count_correct(logits_NC, torch.tensor([1, 1, 1]))
    assert num_correct.dtype == torch.int64
    assert num_correct.shape == ()
    assert int(num_correct) == 2
