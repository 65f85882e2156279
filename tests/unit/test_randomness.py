"""Stateless randomness against SplitMix64 as published, and against what a random permutation must be."""

from __future__ import annotations

import pytest
import torch

from trainlib.randomness import draw, draw_one, key, mix, permutation, seed_generators

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15

# The first outputs of SplitMix64 seeded with 1234567, from the reference implementation (Sebastiano Vigna, 2015).
REFERENCE = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def test_mix_is_splitmix64() -> None:
    assert [mix((1234567 + GOLDEN * (i + 1)) & MASK) for i in range(5)] == REFERENCE


def test_draw_is_splitmix64_without_its_lowest_bit() -> None:
    drawn = draw(1234567, torch.arange(1, 6))
    assert drawn.tolist() == [word >> 1 for word in REFERENCE]


def test_draws_do_not_depend_on_what_is_drawn_beside_them() -> None:
    together = draw(key("a", 3), torch.arange(100))
    assert torch.equal(together[40:60], draw(key("a", 3), torch.arange(40, 60)))


@pytest.mark.parametrize(
    ("left", "right"),
    [(("a", 1, 2), ("a", 2, 1)), (("a", 1), ("b", 1)), (("ab",), ("a", "b")), ((0,), (0, 0)), ((1,), (1 << 40,))],
)
def test_keys_of_different_parts_differ(left: tuple[int | str, ...], right: tuple[int | str, ...]) -> None:
    assert key(*left) != key(*right)


def test_bits_are_balanced() -> None:
    drawn = draw(key("balance"), torch.arange(20_000))
    for bit in range(63):
        split_range = (drawn >> bit & 1).double().mean().item()
        assert abs(split_range - 0.5) < 0.018, f"bit {bit}: {split_range}"  # five standard deviations


@pytest.mark.parametrize("n", [0, 1, 2, 97])
def test_permutation_holds_each_index_once(n: int) -> None:
    assert sorted(permutation(key("order", 0, 0), n).tolist()) == list(range(n))


def test_permutations_are_uniform() -> None:
    counts = torch.zeros(4, 4)
    for epoch in range(4000):
        counts[torch.arange(4), permutation(key("order", 0, epoch), 4)] += 1
    statistic = ((counts - 1000) ** 2 / 1000).sum().item()
    assert statistic < 33.7  # chi-square, 9 degrees of freedom, p = 0.0001


def test_seeding_repeats_what_torch_draws() -> None:
    device = torch.device("cpu")
    seed_generators(key("step", 0, 5, 0), device)
    first = torch.rand(5)
    seed_generators(key("step", 0, 6, 0), device)
    other = torch.rand(5)
    seed_generators(key("step", 0, 5, 0), device)
    assert torch.equal(first, torch.rand(5))
    assert not torch.equal(first, other)


def test_one_draw_is_what_a_tensor_of_them_holds() -> None:
    counters = [0, 1, 39, 2**40, 2**63 - 1, -1]
    for stream in (0, 1, key("crop", 3, 5), 2**64 - 1):
        assert [draw_one(stream, counter) for counter in counters] == draw(stream, torch.tensor(counters)).tolist()
