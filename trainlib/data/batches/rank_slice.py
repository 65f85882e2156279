"""The part of each global batch that one rank computes.

A global batch is split into contiguous shards of almost equal size: one for each rank or, in elastic mode, one for each
virtual shard, of which a rank then computes several. A shard is split into micro-batches that fit into memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RankSlice:
    """The shards of every global batch that one rank computes, and the size of its micro-batches.

    micro_batch_size   the most samples in a micro-batch of training; None: a whole shard is one micro-batch
    virtual_shards     number of shards of a global batch in elastic mode; None: one shard for each rank
    """

    rank: int
    world_size: int
    micro_batch_size: int | None
    virtual_shards: int | None = None

    @property
    def num_shards(self) -> int:
        """Number of shards that one global batch is split into: virtual shards in elastic mode, else ranks."""
        return self.virtual_shards or self.world_size

    @property
    def shards(self) -> range:
        """Indices, in 0..num_shards - 1, of the shards that this rank computes."""
        return shards_of_rank(self.num_shards, self.world_size, self.rank)

    def num_images(self, batch_size: int) -> int:
        """Return how many of the images of a global batch this rank computes."""
        parts = [split_range(batch_size, self.num_shards, shard) for shard in self.shards]
        return sum(part.stop - part.start for part in parts)

    def split(self, batch_ids_N: Tensor, micro_batch_size: int | None) -> list[tuple[int, Tensor]]:
        """Return this rank's micro-batches of a global batch, as pairs (shard index, sample indices int64 [B]).

        A micro-batch holds samples of one shard, at most `micro_batch_size`. An empty shard is one empty micro-batch.
        """
        return [
            (shard, micro_batch)
            for shard in self.shards
            for micro_batch in split_micro_batches(
                batch_ids_N[split_range(len(batch_ids_N), self.num_shards, shard)], micro_batch_size
            )
        ]

    def micro_batches(self, batch_ids_N: Tensor) -> list[Tensor]:
        """Return the sample indices, int64 [B], of each of this rank's training micro-batches of a global batch."""
        return [micro_batch for _, micro_batch in self.split(batch_ids_N, self.micro_batch_size)]


def split_range(n: int, num_parts: int, index: int) -> slice:
    """Return the slice of range(n) that is part `index` of `num_parts` contiguous parts of almost equal size.

    Splitting twice agrees with splitting once: part i of W consists of parts i*V/W ... (i+1)*V/W - 1 of V, for every W
    that divides V. Part 0 is empty only if n is 0: rank 0, whose BatchNorm statistics count, always has samples.
    """
    return slice(-(-index * n // num_parts), -(-(index + 1) * n // num_parts))


def shards_of_rank(num_shards: int, world_size: int, rank: int) -> range:
    """Return the indices of the shards of a global batch that this rank computes."""
    shards = split_range(num_shards, world_size, rank)
    return range(shards.start, shards.stop)


def split_micro_batches(ids_N: Tensor, micro_batch_size: int | None) -> list[Tensor]:
    """Split a shard's sample indices into micro-batches of at most `micro_batch_size`; an empty shard into one."""
    if micro_batch_size is None or len(ids_N) <= micro_batch_size:
        return [ids_N]
    return list(torch.split(ids_N, micro_batch_size))
