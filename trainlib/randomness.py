"""Random numbers without a generator's state: each number is a hash of a key and a counter.

`key("augment", seed, epoch)` makes a key; `draw(key, counters)` returns 63 random bits for each counter. No state is
kept between two draws, so any number can be computed again, in any order, on any rank. The hash is SplitMix64's output
function (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014) on 64-bit integers that wrap,
which gives the same bits on CPU and GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainlib.platform.accelerators import seed_device

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB


def _signed(word: int) -> int:
    """Return the signed 64-bit integer that has the bits of this unsigned 64-bit word."""
    return word - (1 << 64) if word >> 63 else word


def mix(word: int) -> int:
    """Apply SplitMix64's finaliser to one unsigned 64-bit word."""
    word = ((word ^ (word >> 30)) * _MULTIPLIER_1) & _MASK
    word = ((word ^ (word >> 27)) * _MULTIPLIER_2) & _MASK
    return word ^ (word >> 31)


def key(*parts: int | str, folded: int = 0) -> int:
    """Hash integers and strings into one unsigned 64-bit key; their order matters.

    folded   the key of earlier parts, to which these are added

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
    """Shift int64 right and fill with zeros; torch's own shift fills with the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def draw(stream: int, counters_N: Tensor) -> Tensor:
    """Return 63 random bits for each counter: int64 of the same shape and device, in [0, 2**63).

    The bits of element i depend on the key `stream` and `counters_N[i]` alone.
    """
    x = counters_N * _signed(_GOLDEN) + _signed(stream)
    x = (x ^ _shift_right(x, 30)) * _signed(_MULTIPLIER_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MULTIPLIER_2)
    return _shift_right(x ^ _shift_right(x, 31), 1)


def draw_one(stream: int, counter: int) -> int:
    """Return the 63 bits that `draw` gives for this counter, as a number: for code that needs a few of them."""
    return mix((stream + counter * _GOLDEN) & _MASK) >> 1


def permutation(stream: int, n: int) -> Tensor:
    """Return a random order of range(n), int64 [n] on the CPU: indices sorted by their draws, ties by index."""
    return torch.argsort(draw(stream, torch.arange(n)), stable=True)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's own generators of the CPU and of `device`, which dropout and weight initialisation draw from."""
    torch.default_generator.manual_seed(seed)
    seed_device(seed, device)
