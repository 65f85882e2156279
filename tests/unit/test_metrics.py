"""Metrics against a plain average over all samples, however they were cut."""

from __future__ import annotations

import pytest
import torch

from trainlib.training.metrics.sums import better, metrics_of


@pytest.mark.parametrize("parts", [[100], [50, 50], [97, 3], [25, 25, 0, 50]])
def test_parts_make_the_whole(parts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(100, generator=generator, dtype=torch.float64)
    num_correct = torch.rand(100, generator=generator) < 0.3
    sums = torch.stack(
        [
            torch.stack([loss.sum(), hit.sum()])
            for loss, hit in zip(losses.split(parts), num_correct.split(parts), strict=True)
        ]
    )
    metrics = metrics_of(sums.tolist(), denominator=100.0, count=100)
    assert metrics.loss == pytest.approx(losses.mean().item(), rel=1e-14)
    assert metrics.accuracy == num_correct.double().mean().item()
    assert metrics.count == 100


@pytest.mark.parametrize(
    ("value", "than", "mode", "delta", "expected"),
    [
        (1.0, None, "min", 0.0, True),
        (float("nan"), None, "min", 0.0, False),
        (1.0, 2.0, "min", 0.0, True),
        (2.0, 2.0, "min", 0.0, False),
        (1.95, 2.0, "min", 0.1, False),
        (0.5, 0.4, "max", 0.0, True),
        (0.4, 0.4, "max", 0.0, False),
        (float("nan"), 0.4, "max", 0.0, False),
    ],
)
def test_better(value: float, than: float | None, mode: str, delta: float, expected: bool) -> None:
    assert better(value, than, mode, delta) is expected
