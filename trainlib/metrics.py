"""Loss and accuracy over a set of samples, exact however the set was cut into ranks and micro-batches.

A part of a set (see `batches.Shard`) has two numbers: its loss times its denominator (see `losses.Objective`) and how
many it got right. They stay on the device as float64 [P, 2], where adding costs no synchronisation, and are brought
together once, where reported. Every rank has rows for all P parts, and fills its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Metrics:
    """Over `count` samples: the configured loss, and the fraction whose highest logit is the label's."""

    loss: float
    accuracy: float
    count: int

    def asdict(self) -> dict[str, float | int]:
        return asdict(self)


def zero_sums(num_parts: int, device: torch.device) -> Tensor:
    """[loss times denominator, correct] of no samples, for each part: float64 [P, 2]."""
    return torch.zeros(num_parts, 2, dtype=torch.float64, device=device)


def gather_sums(sums_P2: Tensor) -> Tensor:
    """Every part's sums: float64 [P, 2] on the CPU, the same on every rank. A synchronisation point.

    No rank but one has anything but zeros in a row, so that adding the ranks up changes no bit.
    """
    gathered_P2 = sums_P2.clone()
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(gathered_P2)
    return gathered_P2.cpu()


def metrics_of(sums_P2: Tensor, denominator: float, count: int) -> Metrics:
    """The metrics of all parts together. `denominator` and `count` are those of the whole set.

    Parts are added in their order, so that every rank computes the same bits and takes the same decisions from them.
    """
    loss_sum, correct = 0.0, 0.0
    for part_loss, part_correct in sums_P2.tolist():
        loss_sum += part_loss
        correct += part_correct
    return Metrics(
        loss=loss_sum / denominator if denominator else float("nan"),
        accuracy=correct / count if count else float("nan"),
        count=count,
    )


def better(value: float, than: float | None, mode: str, min_delta: float = 0.0) -> bool:
    """Whether a metric improved on an earlier one by more than `min_delta`; NaN never does."""
    if than is None:
        return value == value
    return value < than - min_delta if mode == "min" else value > than + min_delta
