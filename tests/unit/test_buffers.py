"""Buffers of a model: put back after a step, and sent between ranks only where a step could read them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainlib.distributed.process_group import has_only_statistics
from trainlib.models.weights.snapshot import Snapshot


class WithTable(nn.Module):
    """A layer that reads a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.ones(3))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Linear(2, 2), True),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), True),
        (nn.SyncBatchNorm(4), True),
        (nn.Sequential(nn.BatchNorm1d(4), WithTable()), False),
        (nn.InstanceNorm2d(4, track_running_stats=True), False),
    ],
    ids=["none", "BatchNorm", "SyncBatchNorm", "own", "InstanceNorm"],
)
def test_only_statistics_of_batchnorm_may_differ_between_ranks(module: nn.Module, expected: bool) -> None:
    assert has_only_statistics(module) is expected


def test_buffers_of_several_types_are_put_back() -> None:
    norms = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 5), nn.BatchNorm1d(5))
    snapshot = Snapshot(norms.buffers())
    assert [len(tensors) for tensors, _ in snapshot.groups] == [4, 2]  # float32 and int64
    norms(torch.randn(4, 3))
    snapshot.take()
    expected = [buffer.clone() for buffer in norms.buffers()]
    norms(torch.randn(4, 3))
    assert not all(torch.equal(a, b) for a, b in zip(norms.buffers(), expected, strict=True))
    snapshot.restore()
    assert all(torch.equal(a, b) for a, b in zip(norms.buffers(), expected, strict=True))
    Snapshot([]).take()
