"""Targets: a class, a set of classes, a mixture of two samples; and what labels of both forms have in common."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainlib.config import LossConfig
from trainlib.data.batches.plan import Plan
from trainlib.data.identity.splits import split_test, split_validation
from trainlib.data.targets import Targets, class_names_of, class_sizes, set_of, strata
from trainlib.models.losses import Objective, count_correct, with_class_weights, with_weights

CPU = torch.device("cpu")
ONE = torch.tensor([2, 0, 1, 1, 2])
SETS = set_of([[0, 2], [], [1], [0, 1, 2], [2]], 3)
NAMES = ["ant", "bee", "cat"]


def targets(labels_N: Tensor) -> Targets:
    return Targets(labels_N, labels_N)


def dense(labels_N: Tensor) -> Tensor:
    return labels_N.float() if labels_N.ndim == 2 else torch.nn.functional.one_hot(labels_N, 3).float()


both = pytest.mark.parametrize("labels_N", [ONE, SETS], ids=["one", "sets"])


@both
def test_a_mixture_is_the_weighted_mean_of_both_targets(labels_N: Tensor) -> None:
    other_N = labels_N.roll(1, dims=0)
    mixed = targets(labels_N).mixed_with(targets(other_N), 0.25)
    torch.testing.assert_close(mixed.dense(3), 0.25 * dense(labels_N) + 0.75 * dense(other_N))
    assert torch.equal(targets(labels_N).dense(3), dense(labels_N))
    assert torch.equal(mixed.likely_labels, other_N)
    assert torch.equal(targets(labels_N).mixed_with(targets(other_N), 0.5).likely_labels, labels_N)


@both
@pytest.mark.parametrize("is_mixed", [False, True])
def test_pieces_together_are_the_whole(labels_N: Tensor, is_mixed: bool) -> None:
    whole = targets(labels_N).mixed_with(targets(labels_N.flip(0)), 0.3) if is_mixed else targets(labels_N)
    pieces = whole.split(2)
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    assert torch.equal(torch.cat([piece.dense(3) for piece in pieces]), whole.dense(3))
    assert {piece.weight for piece in pieces} == {whole.weight}


@both
def test_counts_and_names(labels_N: Tensor) -> None:
    assert class_sizes(labels_N, 3).tolist() == dense(labels_N).sum(dim=0).tolist()
    names = class_names_of(labels_N, NAMES)
    assert names == [[NAMES[c] for c in range(3) if row[c]] for row in dense(labels_N).tolist()]


def test_mixed_sets_have_torchs_loss_of_mixed_targets() -> None:
    """Binary cross entropy is linear in its targets."""
    objective = Objective(LossConfig(name="BCEWithLogitsLoss", activation="none"), 3, CPU)
    logits_NC = torch.randn(5, 3, dtype=torch.float64)
    mixed = targets(SETS).mixed_with(targets(SETS.roll(1, dims=0)), 0.3)
    loss, denominator = objective.of(logits_NC, mixed)
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(logits_NC, mixed.dense(3, torch.float64))
    torch.testing.assert_close(loss, theirs, rtol=1e-12, atol=0)
    assert denominator == pytest.approx(5)


def test_a_set_is_right_if_it_is_whole() -> None:
    logits_NC = torch.where(SETS, 1.5, -0.5)
    assert int(count_correct(logits_NC, SETS)) == 5
    logits_NC[0, 1] = 0.25
    logits_NC[4, 2] = -1.0
    assert int(count_correct(logits_NC, SETS)) == 3


def test_balanced_weights_are_those_of_the_classes_in_the_sets() -> None:
    """Both answers to a class weigh the same together; a class without a sample keeps 1."""
    sets = torch.cat([SETS, torch.zeros(5, 1, dtype=torch.bool)], dim=1)
    loss = LossConfig.model_validate({"name": "BCEWithLogitsLoss", "activation": "none", "weight": "balanced"})
    filled = with_class_weights(loss, sets, 4)
    assert filled.args == {"weight": None, "pos_weight": [3 / 2, 3 / 2, 2 / 3, 1.0]}
    assert with_weights(loss, filled.args["pos_weight"], of_sets=True) == filled
    logits_NC = torch.randn(5, 4)
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(filled.args["pos_weight"]))(logits_NC, sets.float())
    assert torch.equal(Objective(filled, 4, CPU)(logits_NC, sets), theirs)


def test_a_set_is_split_as_its_rarest_class() -> None:
    assert torch.equal(strata(ONE), ONE)
    # ant 2, bee 2, cat 3: of equally rare ones the first.
    assert strata(SETS).tolist() == [0, 3, 1, 0, 2]


def test_every_class_has_its_share_in_every_split() -> None:
    generator = torch.Generator().manual_seed(0)
    sets = torch.rand(2000, 6, generator=generator) < torch.tensor([0.4, 0.3, 0.2, 0.1, 0.03, 0.01])
    ids = torch.randperm(10**6, generator=generator)[:2000]
    train, val = split_validation(sets, 0.2, 5, identities_N=ids)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(2000))
    shares = sets[val].sum(dim=0) / sets.sum(dim=0)
    assert ((shares - 0.2).abs() < 0.04).all(), shares
    assert sets[val][:, 5].sum() == round(0.2 * int(sets[:, 5].sum())), "the rarest class has its exact share"
    assert torch.equal(val, split_validation(sets, 0.2, 5, identities_N=ids)[1])
    assert not torch.equal(val, split_test(sets, 0.2, 5, identities_N=ids))


def test_no_split_cuts_a_group_of_sets() -> None:
    sets = torch.rand(300, 4, generator=torch.Generator().manual_seed(1)) < 0.3
    groups_N = torch.arange(300) // 5
    train, val = split_validation(sets, 0.2, 0, groups_N=groups_N)
    assert not set(groups_N[train].tolist()) & set(groups_N[val].tolist())
    assert 40 <= len(val) <= 80


def test_repeated_augmentation_takes_sets() -> None:
    from trainlib.config import load_config
    from trainlib.training.build.data import build_plan

    sets = torch.rand(40, 4, generator=torch.Generator().manual_seed(1)) < 0.3
    words = ["data={name: table, table: t.csv, labels: several, repeats: 2, val_fraction: 0}", "train.batch_size=8"]
    plan, _ = build_plan(load_config(["quickstart", *words, "loss={name: BCEWithLogitsLoss}"]), sets)
    assert isinstance(plan, Plan)
    uses = torch.bincount(torch.cat(plan.batches(0)), minlength=40)
    assert uses.tolist().count(2) == 20
