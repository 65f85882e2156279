"""Loss and accuracy over a set of samples, exact however the set was cut into ranks and micro-batches.

A part of a set adds two numbers: its loss times its denominator (see `losses.Objective`) and how many it got right.
They stay on the device as float64 [2], where adding costs no synchronisation, and are brought together once, where
reported.
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


def zero_sums(device: torch.device) -> Tensor:
    """[loss times denominator, correct] of no samples: float64 [2]."""
    return torch.zeros(2, dtype=torch.float64, device=device)


def gather_sums(sums_2: Tensor) -> Tensor:
    """Every rank's sums, in rank order: float64 [W, 2] on the CPU, the same on every rank. A synchronisation point."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return sums_2.cpu().double()[None]
    parts = [torch.empty_like(sums_2) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, sums_2)
    return torch.stack([part.cpu().double() for part in parts])


def metrics_of(sums_W2: Tensor, denominator: float, count: int) -> Metrics:
    """The metrics of all ranks' samples together. `denominator` and `count` are those of the whole set.

    Ranks are added in rank order, so that every rank computes the same bits and takes the same decisions from them.
    """
    loss_sum, correct = 0.0, 0.0
    for rank_loss, rank_correct in sums_W2.tolist():
        loss_sum += rank_loss
        correct += rank_correct
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
