"""Metrics against a plain average over all samples, however they were cut."""

from __future__ import annotations

import pytest
import torch

from trainlib.config import Best
from trainlib.config.schema.values import better_mode
from trainlib.training.metrics.progress import Progress
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


def best_epoch(values: list[float], losses: list[float | None], metric: str = "val/accuracy") -> int:
    """The epoch that is the best in the end, with the progress saved and loaded after each."""
    progress = Progress.at_start(1)
    best = Best(metric=metric, mode=better_mode(metric))  # type: ignore[arg-type]
    for epoch, (value, loss) in enumerate(zip(values, losses, strict=True), 1):
        metrics = {metric: value} | ({} if loss is None else {"val/loss": loss})
        progress.record_metrics(metrics, epoch, best, None)
        progress = Progress.from_state(progress.state_dict(torch.device("cpu")), range(1), 1)
    assert progress.best is not None
    assert set(progress.best) == {"metric", "value", "step", "epoch"}
    return int(progress.best["epoch"])


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "losses", "expected"),
    [
        ([0.5, 0.5, 0.5], [3.0, 1.0, 2.0], 2),  # the lower loss
        ([0.5, 0.5, 0.5], [2.0, 1.0, 1.0], 3),  # then the later epoch
        ([0.5, 0.6, 0.5], [1.0, 2.0, 0.5], 2),  # the metric comes first
        ([0.5, 0.5], [1.0, NAN], 1),
        ([0.5, 0.5], [NAN, 1.0], 2),
        ([0.5, 0.5], [None, None], 2),
    ],
)
def test_of_equal_evaluations_the_lower_loss_is_the_best_then_the_later(
    values: list[float], losses: list[float | None], expected: int
) -> None:
    assert best_epoch(values, losses) == expected


def test_of_equal_losses_the_later_is_the_best() -> None:
    assert best_epoch([2.0, 1.0, 1.0, 1.5], [2.0, 1.0, 1.0, 1.5], "val/loss") == 3


def test_progress_of_an_older_version_goes_on() -> None:
    state = Progress.at_start(1).state_dict(torch.device("cpu"))
    del state["best_loss"]
    assert Progress.from_state(state, range(1), 1).best_loss is None
