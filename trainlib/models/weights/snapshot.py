"""A copy of tensors that a step may have to put back, made and put back in few calls of the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def is_all_finite(tensor: Tensor) -> bool:
    """Return True if no value is infinite or not a number, as they are in a mask of attention: no sums of it are."""
    return bool(torch.isfinite(tensor).all())


class Snapshot:
    """Room for what tensors held before a step, made once.

    groups   the tensors of one type, and their copies: torch copies many at once only where all are of one type
    """

    def __init__(self, tensors: Iterable[Tensor]):
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        self.groups = [(group, [tensor.clone() for tensor in group]) for group in by_type.values()]

    def take(self) -> None:
        """Copy the tensors."""
        for tensors, before in self.groups:
            torch._foreach_copy_(before, tensors)

    def restore(self) -> None:
        """Set the tensors to what they were when the last copy was taken."""
        for tensors, before in self.groups:
            torch._foreach_copy_(tensors, before)
