"""The sample indices of every step, as pure functions of the configuration.

A training set of N samples is traversed in an order that depends on (seed, epoch). Step s of the epoch takes the s-th
slice of that order, the *global batch*; a rank computes its slice of the global batch (`rank_slice`). There is no
sampler state, so a run may begin at any step.

With `data.balance` or `data.repeats` an epoch of N places uses some samples more than once (`sampling`). The random
changes of a sample are drawn by its *draw number*, which is its index the first time that the epoch uses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trainlib.data.batches.sampling import Sampling
from trainlib.randomness import key, permutation

USES = 2**32  # more than any sample index: a sample's draw number at its k-th use in an epoch is its index + k * USES


@dataclass(frozen=True)
class Plan:
    """The order of training samples over the whole run, in optimizer steps.

    ids_N               int64 [N]: the training samples' indices in the data set's own order
    global_batch_size   samples in a step, over all ranks
    total_steps         optimizer steps in the run
    sampling            how often an epoch uses each sample; None: once
    """

    ids_N: Tensor
    seed: int
    global_batch_size: int
    shuffle: bool
    drop_last: bool
    total_steps: int
    sampling: Sampling | None = None

    @cached_property
    def steps_per_epoch(self) -> int:
        """Number of global batches in an epoch."""
        return steps_per_epoch(len(self.ids_N), self.global_batch_size, self.drop_last)

    def epoch_of(self, step: int) -> int:
        """Return the epoch that a step belongs to, both counted from 0."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Return True if the step, counted from 0, is the last of its epoch."""
        return (step + 1) % self.steps_per_epoch == 0

    def batches(self, epoch: int) -> list[Tensor]:
        """Return the global batches of this epoch, in order: sample indices, int64 [B]; the last may be shorter."""
        return self.batches_and_draws(epoch)[0]

    def batches_and_draws(self, epoch: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the global batches of this epoch, and for each of them the draw numbers of its samples, int64 [B]."""
        ids_N, draws_N = self._epoch(epoch)
        batches = self._cut(ids_N)
        return batches, batches if draws_N is ids_N else self._cut(draws_N)

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return the sample indices in the order of this epoch, and their draw numbers: int64 [N]."""
        if self.sampling is not None:
            places_N, earlier_N = self.sampling.order(self.seed, epoch, self.shuffle)
            ids_N = self.ids_N[places_N]
            return ids_N, ids_N + earlier_N * USES
        ids_N = self.ids_N
        if self.shuffle:
            ids_N = ids_N[permutation(key("order", self.seed, epoch), len(ids_N))]
        return ids_N, ids_N

    def _cut(self, values_N: Tensor) -> list[Tensor]:
        return list(torch.split(values_N, self.global_batch_size)[: self.steps_per_epoch])


def steps_per_epoch(num_samples: int, global_batch_size: int, drop_last: bool) -> int:
    """Return the number of global batches in an epoch; a shorter last one counts unless `drop_last`."""
    full, rest = divmod(num_samples, global_batch_size)
    return full if drop_last or not rest else full + 1


def to_steps(duration: str, epoch_steps: int) -> int:
    """Convert a duration, `20ep` or `500st`, to optimizer steps."""
    count = int(duration[:-2])
    return count * epoch_steps if duration.endswith("ep") else count
