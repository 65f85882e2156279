"""Randomness without state: every draw is a hash of what it is for.

`key("augment", seed, epoch)` names a stream; `draw(stream, counters)` gives 63 random bits for each counter. Nothing is
kept between two draws, so any of them can be made again, in any order, on any rank. The hash is SplitMix64's output
function (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014) on 64-bit integers that wrap,
which gives the same bits on CPU and GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def _signed(word: int) -> int:
    """The int64 with the bits of this unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


def mix(word: int) -> int:
    """SplitMix64's finaliser on one unsigned 64-bit word."""
    word = ((word ^ (word >> 30)) * _MULTIPLIER_1) & _MASK
    word = ((word ^ (word >> 27)) * _MULTIPLIER_2) & _MASK
    return word ^ (word >> 31)


def key(*parts: int | str, folded: int = 0) -> int:
    """Fold integers and words into one unsigned 64-bit key; the order matters.

    folded   the key of the parts that come before these

    >>> key("order", 0, 1) == key("order", 1, 0)
    False
    >>> key("order", 0, 1) == key(1, folded=key("order", 0))
    True
    """
    state = folded
    for part in parts:
        words = [part & _MASK] if isinstance(part, int) else [len(part), *part.encode()]
        for word in words:
            state = mix(((state ^ word) + _GOLDEN) & _MASK)
    return state


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64; torch's own is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def draw(stream: int, counters_N: Tensor) -> Tensor:
    """63 random bits for each counter: int64 of the same shape and device, in [0, 2**63).

    The bits of element i depend on `stream` and `counters_N[i]` alone.
    """
    x = counters_N * _signed(_GOLDEN) + _signed(stream)
    x = (x ^ _shift_right(x, 30)) * _signed(_MULTIPLIER_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MULTIPLIER_2)
    return _shift_right(x ^ _shift_right(x, 31), 1)


def permutation(stream: int, n: int) -> Tensor:
    """A random order of range(n): int64 on the CPU. Indices sorted by their draws, ties by index."""
    return torch.argsort(draw(stream, torch.arange(n)), stable=True)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of this device, for what draws through torch: dropout, initialisation."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
