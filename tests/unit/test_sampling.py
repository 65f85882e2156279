"""Balanced and repeated samples: counts, order and draw numbers of an epoch, against a plain reckoning."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from trainlib.config import load_config
from trainlib.data.augment.augmentation import Augmentation
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.batches.loader import BatchLoader
from trainlib.data.batches.plan import USES, Plan
from trainlib.data.batches.rank_slice import RankSlice
from trainlib.data.batches.sampling import Sampling
from trainlib.data.datasets.dataset import ImageSet
from trainlib.data.datasets.images import InMemoryImages
from trainlib.errors import ConfigError

SIZES = {0: 50, 1: 7, 3: 1, 4: 20}  # no sample is of class 2


def make_labels(sizes: dict[int, int] = SIZES) -> torch.Tensor:
    labels = torch.tensor([label for label, size in sizes.items() for _ in range(size)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


def make_plan(balance: float, repeats: int, *, batch_size: int = 10, shuffle: bool = True, seed: int = 5) -> Plan:
    labels_N = make_labels()
    ids_N = torch.arange(len(labels_N)) * 2 + 1
    return Plan(ids_N, seed, batch_size, shuffle, False, 100, Sampling(labels_N, balance, repeats))


def used(plan: Plan, epoch: int) -> list[int]:
    return torch.cat(plan.batches(epoch)).tolist()


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 1.0])
def test_each_class_gets_a_whole_number_next_to_its_share(balance: float) -> None:
    plan, labels = make_plan(balance, 1), make_labels().tolist()
    shares = {label: size ** (1 - balance) for label, size in SIZES.items()}
    for epoch in range(20):
        counts = Counter(labels[(i - 1) // 2] for i in used(plan, epoch))
        for label, share in shares.items():
            assert abs(counts[label] - 78 * share / sum(shares.values())) < 1 + 1e-9, (epoch, label)
        assert sum(counts.values()) == 78


def test_shares_are_met_on_average() -> None:
    plan, labels = make_plan(0.5, 1), make_labels().tolist()
    counts = Counter(labels[(i - 1) // 2] for epoch in range(400) for i in used(plan, epoch))
    total = sum(size**0.5 for size in SIZES.values())
    for label, size in SIZES.items():
        assert counts[label] / 400 == pytest.approx(78 * size**0.5 / total, abs=0.08)


@pytest.mark.parametrize(("balance", "repeats"), [(0.4, 1), (1.0, 1), (1.0, 3), (0.0, 2)])
def test_every_sample_of_a_class_is_drawn_once_before_any_is_drawn_again(balance: float, repeats: int) -> None:
    sampling, labels = make_plan(balance, repeats).sampling, make_labels()
    assert sampling is not None
    for epoch in range(5):
        draws_N = sampling.draws(5, epoch)
        assert int(draws_N.sum()) == -(-78 // repeats)
        for label in SIZES:
            of_class = draws_N[labels == label]
            assert of_class.max() - of_class.min() <= 1


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_balance_and_no_repeats_are_the_order_of_every_version(shuffle: bool) -> None:
    plan = make_plan(0.0, 1, shuffle=shuffle)
    plain = Plan(plan.ids_N, 5, 10, shuffle, False, 100)
    for epoch in range(3):
        for ours, theirs in zip(plan.batches_and_draws(epoch), plain.batches_and_draws(epoch), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("balance", "repeats"), [(0.0, 3), (0.0, 10), (1.0, 2), (0.5, 7)])
def test_repeats_are_neighbours_and_an_epoch_keeps_its_length(balance: float, repeats: int, shuffle: bool) -> None:
    plan = make_plan(balance, repeats, shuffle=shuffle)
    ids = used(plan, 2)
    assert len(ids) == 78
    assert all(len(set(ids[i : i + repeats])) == 1 for i in range(0, 78, repeats))
    assert [len(batch) for batch in plan.batches(2)] == [10] * 7 + [8]


@pytest.mark.parametrize(("balance", "repeats"), [(0.0, 3), (1.0, 1), (0.7, 4)])
def test_each_use_of_a_sample_has_a_draw_number_of_its_own(balance: float, repeats: int) -> None:
    batches, draws = make_plan(balance, repeats).batches_and_draws(1)
    uses: dict[int, set[int]] = {}
    for sample, number in zip(torch.cat(batches).tolist(), torch.cat(draws).tolist(), strict=True):
        assert number % USES == sample
        assert number not in uses.setdefault(sample, set())
        uses[sample].add(number)
    assert all(min(numbers) < USES for numbers in uses.values()), "its index, the first time"


def test_without_shuffling_the_epoch_walks_the_samples_own_order_and_leaves_none_out_for_ever() -> None:
    plan = make_plan(0.0, 5, shuffle=False)
    seen: set[int] = set()
    for epoch in range(40):
        ids = used(plan, epoch)
        assert ids == sorted(ids)
        seen |= set(ids)
    assert seen == set(plan.ids_N.tolist())


def test_the_epoch_is_a_function_of_seed_and_number() -> None:
    assert used(make_plan(0.5, 2), 3) == used(make_plan(0.5, 2), 3)
    assert used(make_plan(0.5, 2), 3) != used(make_plan(0.5, 2), 4)
    assert used(make_plan(0.5, 2), 3) != used(make_plan(0.5, 2, seed=6), 3)


def test_the_balanced_order_is_that_of_every_version() -> None:
    """A run that is resumed with a newer version must find the order that it began with."""
    labels_N = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 2])
    plan = Plan(torch.arange(10), 7, 4, True, False, 30, Sampling(labels_N, 0.5, 2))
    assert torch.cat(plan.batches(1)).tolist() == GOLDEN


def test_one_sample_of_a_million_is_used_as_often_as_the_others_together() -> None:
    labels_N = torch.zeros(100_000, dtype=torch.int64)
    labels_N[17] = 1
    draws_N = Sampling(labels_N, 1.0, 1).draws(0, 0)
    assert draws_N[17] == 50_000
    assert draws_N.sum() == 100_000


def test_each_use_of_a_sample_is_augmented_by_itself_on_any_number_of_ranks() -> None:
    plan = make_plan(0.5, 3, batch_size=16)
    images = InMemoryImages(torch.randint(0, 256, (200, 3, 8, 8), dtype=torch.uint8))
    augmentation = Augmentation(3, flip=True, crop_padding=4)
    batches, draws = plan.batches_and_draws(0)
    labels_N = torch.arange(200) % 5

    def loaded(rank: int, world_size: int) -> list[torch.Tensor]:
        slices = RankSlice(rank, world_size, 3)
        preprocess = Preprocess((0.0,) * 3, (1.0,) * 3, 8)
        loader = BatchLoader(ImageSet(images, labels_N), preprocess, slices, torch.device("cpu"))
        steps = loader.train_batches(batches, 0, augmentation, draws)
        return [
            torch.cat([m.images_NCHW for m in step if not m.is_empty] or [torch.empty(0, 3, 8, 8)]) for step in steps
        ]

    whole = torch.cat(loaded(0, 1))
    halves = zip(loaded(0, 2), loaded(1, 2), strict=True)
    assert torch.equal(whole, torch.cat([torch.cat(pair) for pair in halves]))
    for place, (sample, number) in enumerate(zip(torch.cat(batches), torch.cat(draws), strict=True)):
        alone = augmentation(images.images_NCHW[sample : sample + 1], number.view(1), 0)
        assert torch.allclose(whole[place], alone[0] / 255.0)
    assert not torch.equal(whole[0], whole[1])  # the same sample


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["data.repeats=9", "train.batch_size=8"], "data.repeats: got 9, must be <= train.batch_size, which is 8"),
        (["data.repeats=0"], "data.repeats: got 0, must be >= 1"),
        (["data.balance=1.5"], "data.balance: got 1.5, must be <= 1"),
    ],
)
def test_mistakes(words: list[str], rule: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(rule)):
        load_config(["quickstart", *words])


def test_what_an_epoch_draws_is_told() -> None:
    sentence = Sampling(torch.tensor([0] * 6 + [2] * 2), 1.0, 1).describe(["ant", "bee", "cat"], 0)
    assert sentence == "data.balance 1: an epoch draws samples by class: 'ant' 4 of its 6, 'cat' 4 of its 2"


GOLDEN = [1, 1, 9, 9, 8, 8, 0, 0, 2, 2]
