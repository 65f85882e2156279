"""One row of numbers for each piece of a global batch, gathered from the ranks that compute the pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainlib.data.batches.rank_slice import shards_of_rank
from trainlib.distributed.process_group import all_gather


class PieceGather:
    """Brings the rows of all pieces to every rank, in the order of the pieces, whichever rank has which.

    num_pieces   of a global batch: the ranks, or the virtual shards of elastic mode
    """

    def __init__(self, num_pieces: int, world_size: int, rank: int):
        shares = [shards_of_rank(num_pieces, world_size, r) for r in range(world_size)]
        self.own = shares[rank]
        self._most = max(map(len, shares))
        self._world_size = world_size
        self._places = torch.tensor(
            [r * self._most + place for r, share in enumerate(shares) for place in range(len(share))]
        )

    def __call__(self, rows_KF: Tensor, pieces: Sequence[int]) -> Tensor:
        """Return the rows [V, F] of all pieces; those that no rank has are zeros. A collective.

        pieces   the K pieces of this rank that the rows belong to
        """
        mine = rows_KF.new_zeros(self._most, rows_KF.shape[1])
        mine[[piece - self.own.start for piece in pieces]] = rows_KF
        if self._world_size == 1:
            return mine
        gathered = mine.new_empty(self._world_size * self._most, rows_KF.shape[1])
        all_gather(gathered, mine)
        return gathered[self._places.to(gathered.device)]
