"""How often an epoch uses each training sample (`data.balance`, `data.repeats`), a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cached_property

import torch
from torch import Tensor

from trainlib.randomness import draw, key, permutation

_DIGITS = Context(prec=40)
_NAMED_AT_MOST = 10
_DROPPED_BITS = 23  # of 63 random ones: a class and 40 bits of a draw are sorted as one number
_UNIT = 2**64  # of a class's weight, which is computed in integers: the same on every machine


@dataclass(frozen=True)
class Sampling:
    """How an epoch over N samples chooses which of them it uses, and how often.

    labels_N   int64 [N]: the class of each training sample
    balance    b: of the samples that an epoch draws, each class gets a share in proportion to n_class^(1 - b): its
               whole part, and over the epochs its fraction on average, by one random number for each epoch. Within a
               class every sample is drawn once before any is drawn again
    repeats    R: the epoch draws ceil(N / R) samples, and uses each R times, in neighbouring places
    """

    labels_N: Tensor
    balance: float
    repeats: int

    def order(self, seed: int, epoch: int, shuffle: bool) -> tuple[Tensor, Tensor]:
        """Return the places of the samples that this epoch uses, and how often each was used before: int64 [N] both.

        A place is a sample's position in `labels_N`, 0..N - 1.
        """
        num_samples = len(self.labels_N)
        num_drawn = -(-num_samples // self.repeats)
        draws_N = self.draws(seed, epoch)
        drawn = torch.repeat_interleave(draws_N)
        earlier = torch.arange(num_drawn) - (draws_N.cumsum(0) - draws_N)[drawn]
        if shuffle:
            shuffled = permutation(key("order", seed, epoch), num_drawn)
            drawn, earlier = drawn[shuffled], earlier[shuffled]
        uses = torch.arange(num_samples)
        row = uses // self.repeats
        return drawn[row], earlier[row] * self.repeats + uses % self.repeats

    def draws(self, seed: int, epoch: int) -> Tensor:
        """Return how often this epoch draws each sample, int64 [N]; their sum is ceil(N / repeats)."""
        num_samples, stream = len(self.labels_N), key("balance", seed, epoch)
        num_drawn = -(-num_samples // self.repeats)
        offset = int(draw(stream, torch.tensor([-1])))
        draws_C = torch.tensor(proportional(self._weights, num_drawn, offset))
        sizes_C = self._class_sizes
        in_class_N = draw(stream, torch.arange(num_samples)) >> _DROPPED_BITS
        order = torch.argsort((self.labels_N << (63 - _DROPPED_BITS)) | in_class_N, stable=True)
        labels_N = self.labels_N[order]
        rank_in_class_N = torch.arange(num_samples) - (sizes_C.cumsum(0) - sizes_C)[labels_N]
        draws_N = torch.empty(num_samples, dtype=torch.int64)
        draws_N[order] = (draws_C // sizes_C.clamp(min=1))[labels_N] + (
            rank_in_class_N < (draws_C % sizes_C.clamp(min=1))[labels_N]
        )
        return draws_N

    def describe(self, class_names: Sequence[str], seed: int) -> str:
        """Return a sentence on how often the first epoch draws samples of each class, or of the rarest and commonest.

        class_names   of all classes, in the order of the labels
        """
        drawn_C = torch.zeros(len(self._class_sizes), dtype=torch.int64).index_add_(
            0, self.labels_N, self.draws(seed, 0)
        )
        rows = [
            (size, f"{name!r} {drawn} of its {size}")
            for name, drawn, size in zip(class_names, drawn_C.tolist(), self._class_sizes.tolist(), strict=False)
            if size
        ]
        if len(rows) > _NAMED_AT_MOST:
            rows = [min(rows), max(rows)]
        text = ", ".join(words for _, words in rows)
        return f"data.balance {self.balance:g}: an epoch draws samples by class: {text}"

    @cached_property
    def _class_sizes(self) -> Tensor:
        return torch.bincount(self.labels_N)

    @cached_property
    def _weights(self) -> list[int]:
        return class_weights(self._class_sizes.tolist(), self.balance)


def class_weights(sizes: Sequence[int], balance: float) -> list[int]:
    """Return integers in proportion to n^(1 - balance) for class sizes n; 0 for an empty class.

    In decimal arithmetic, whose powers are the same on every machine, unlike those of floats.
    """
    exponent = 1 - Decimal(str(balance))
    return [int(_DIGITS.power(n, exponent) * _UNIT) if n else 0 for n in sizes]


def proportional(weights: Sequence[int], total: int, offset: int) -> list[int]:
    """Return counts that sum to `total`, each one of the two whole numbers around its share by these weights.

    offset   0 <= offset < 2^63: decides between the two. Where it is drawn evenly, the mean of a count is its share
             (systematic sampling). A share that is a whole number is the count
    """
    counts, before, cumulated, whole = [], 0, 0, sum(weights) << 63
    for weight in weights:
        cumulated += weight
        upto = ((cumulated * total << 63) + offset * (whole >> 63)) // whole
        counts.append(upto - before)
        before = upto
    return counts
