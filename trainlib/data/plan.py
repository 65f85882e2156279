"""What each step trains on: epochs, batches and durations as pure functions of the configuration.

A training set of N samples is walked in an order that depends on (seed, epoch). Step s of the epoch takes the s-th
slice of it, the *global batch*; a rank takes its share of the global batch. Nothing is consumed, so a run may begin at
any step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainlib.randomness import key, permutation


def split_range(n: int, parts: int, index: int) -> slice:
    """The `index`-th of `parts` contiguous, almost equal pieces of range(n).

    Pieces of pieces agree: piece i of W is pieces i*V/W ... (i+1)*V/W of V, for every W that divides V. The first
    piece is empty only where all are: rank 0, whose BatchNorm statistics count, always takes part.
    """
    return slice(-(-index * n // parts), -(-(index + 1) * n // parts))


def parts_of(num_parts: int, world_size: int, rank: int) -> range:
    """Which of a batch's parts a rank computes."""
    mine = split_range(num_parts, world_size, rank)
    return range(mine.start, mine.stop)


def split_validation(num_samples: int, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Sample indices (int64, ascending) for training and for validation; at least one each where val_fraction > 0."""
    num_val = round(num_samples * val_fraction)
    if val_fraction > 0:
        num_val = min(max(num_val, 1), num_samples - 1)
    order = permutation(key("validation", seed), num_samples)
    return order[num_val:].sort().values, order[:num_val].sort().values


def limit_samples(ids_N: Tensor, limit: int | None, seed: int) -> Tensor:
    """A random subset of `limit` of these sample indices, kept in their own order; all of them where limit is None."""
    if limit is None:
        return ids_N
    chosen = permutation(key("limit", seed), len(ids_N))[:limit].sort().values
    return ids_N[chosen]


@dataclass(frozen=True)
class Plan:
    """The whole run in steps.

    ids_N               int64: the training samples' indices in the data set's own order
    global_batch_size   samples in a step, over all ranks
    total_steps         optimizer steps in the run
    """

    ids_N: Tensor
    seed: int
    global_batch_size: int
    shuffle: bool
    drop_last: bool
    total_steps: int

    @cached_property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(len(self.ids_N), self.global_batch_size, self.drop_last)

    def epoch_of(self, step: int) -> int:
        """The epoch, from 0, that step `step`, from 0, belongs to."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether step `step`, from 0, is the last of its epoch."""
        return (step + 1) % self.steps_per_epoch == 0

    def epoch_ids(self, epoch: int) -> Tensor:
        """The training samples' indices in the order of this epoch: int64 [N]."""
        if not self.shuffle:
            return self.ids_N
        return self.ids_N[permutation(key("order", self.seed, epoch), len(self.ids_N))]

    def batches(self, epoch: int) -> list[Tensor]:
        """The global batches of this epoch, in order: sample indices, int64 [B], the last one perhaps shorter."""
        slices = torch.split(self.epoch_ids(epoch), self.global_batch_size)
        return list(slices[: self.steps_per_epoch])


def steps_per_epoch(num_samples: int, global_batch_size: int, drop_last: bool) -> int:
    """Global batches in an epoch; the last, shorter one counts unless `drop_last`."""
    full, rest = divmod(num_samples, global_batch_size)
    return full if drop_last or not rest else full + 1


def to_steps(duration: str, epoch_steps: int) -> int:
    """A duration, `20ep` or `500st`, in steps."""
    count = int(duration[:-2])
    return count * epoch_steps if duration.endswith("ep") else count


def split_micro_batches(batch: Tensor, micro_batch_size: int | None) -> list[Tensor]:
    """A rank's share of a batch cut into pieces of at most `micro_batch_size`; an empty share is one empty piece."""
    if micro_batch_size is None or len(batch) <= micro_batch_size:
        return [batch]
    return list(torch.split(batch, micro_batch_size))
