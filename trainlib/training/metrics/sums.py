"""Loss and accuracy over a set of samples, exact however the set was cut into ranks and micro-batches.

A shard of a set (see `RankSlice`) has two numbers: its loss times its denominator (see `losses.Objective`) and how
many it got right. The results of a micro-batch stay on the device until they are read, many at once; then they are
added up in float64 on the host, in the order in which it was computed. Every rank has rows for all shards, fills its
own, and gathers the others' where they are reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Metrics:
    """Over `count` samples: the configured loss, and the fraction that is right (see `losses.count_correct`).

    An evaluation also has the metrics of `ClassCounts`, or those of `SetMetrics` with the thresholds that the answers
    were made with, and the user's own by name; training has None for them.
    """

    loss: float
    accuracy: float
    count: int
    top5: float | None = None
    macro_f1: float | None = None
    balanced_accuracy: float | None = None
    map: float | None = None
    micro_f1: float | None = None
    subset_accuracy: float | None = None
    thresholds: tuple[float, ...] | None = None
    own: Mapping[str, float] | None = None

    def asdict(self) -> dict[str, float | int]:
        """Return all numbers that there are, by name: loss, accuracy, count and, of an evaluation, the others."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value for name, value in found.items() if name not in ("thresholds", "own")} | dict(
            self.own or {}
        )

    def named(self, split: str) -> dict[str, float]:
        """Return the metrics by the names that a configuration has for them, such as `val/loss`."""
        return {f"{split}/{name}": value for name, value in self.asdict().items() if name != "count"}


Sums: TypeAlias = list[list[float]]  # of each shard: loss times denominator, and samples that are right


class MicroBatchResult(NamedTuple):
    """The loss and the number of correct samples of a micro-batch, still on the device.

    shard         of the set
    denominator   its own
    loss          of its samples, a scalar
    num_correct   samples whose highest logit is the label's, an int64 scalar
    """

    shard: int
    denominator: float
    loss: Tensor
    num_correct: Tensor


def empty_sums(num_shards: int) -> Sums:
    """Of no samples."""
    return [[0.0, 0.0] for _ in range(num_shards)]


def to_host(tensors: Sequence[Tensor]) -> list[float]:
    """Return the values of scalar tensors, in one transfer. A synchronisation point on a GPU."""
    if not tensors or tensors[0].device.type == "cpu":
        return [tensor.item() for tensor in tensors]
    values: list[float] = torch.stack([tensor.double() for tensor in tensors]).tolist()
    return values


def accumulate(sums: Sums, measured: Iterable[tuple[MicroBatchResult, float, float]]) -> Sums:
    """Add micro-batches to the sums, each with the values of its loss and num_correct; returns the sums."""
    for (shard, denominator, _, _), loss, num_correct in measured:
        if denominator:  # of zero it adds no loss, whatever the loss is
            sums[shard][0] += loss * denominator
        sums[shard][1] += num_correct
    return sums


def sums_of(measured: Sequence[MicroBatchResult], num_shards: int) -> Sums:
    """Return the sums of these micro-batches. A synchronisation point on a GPU."""
    losses, num_correct = to_host([m.loss for m in measured]), to_host([m.num_correct for m in measured])
    return accumulate(empty_sums(num_shards), zip(measured, losses, num_correct, strict=True))


def gather_sums(sums: Sums, device: torch.device) -> Sums:
    """Every shard's sums, the same on every rank. A synchronisation point.

    device   that the ranks talk through
    No rank but one has anything but zeros in a row, so that adding the ranks up changes no bit.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return [list(row) for row in sums]
    sums_P2 = torch.tensor(sums, dtype=torch.float64, device=device)
    dist.all_reduce(sums_P2)
    gathered: Sums = sums_P2.tolist()
    return gathered


def gather_rows(rows: Tensor) -> Tensor:
    """Return every rank's rows, [N, X], one rank's behind the other's; they may differ in number. A collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    numbers = [int(count) for count in counts]
    padded = torch.zeros(max(numbers), rows.shape[1], dtype=rows.dtype, device=rows.device)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in numbers]
    dist.all_gather(parts, padded)
    return torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])


def metrics_of(sums: Sums, denominator: float, count: int) -> Metrics:
    """Return the metrics of all shards together. `denominator` and `count` are those of the whole set.

    Parts are added in their order, so that every rank computes the same bits and takes the same decisions from them.
    """
    loss_sum, correct = 0.0, 0.0
    for shard_loss, shard_correct in sums:
        loss_sum += shard_loss
        correct += shard_correct
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
