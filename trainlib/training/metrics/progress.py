"""How far a run has come: all that changes from step to step besides weights, optimizer and schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainlib.config import Best, EarlyStopping
from trainlib.training.metrics.sums import Sums, better, empty_sums, gather_sums


@dataclass
class Progress:
    """The state of the loop; saved with each checkpoint.

    step             optimizer steps done
    sums             this rank's sums over the current epoch so far (see `metrics.sums`)
    best             {"metric", "value", "step", "epoch"} of the best evaluation, as the configuration defines it
    best_loss        its validation loss, which decides between evaluations of the same value
    stopping_*       early stopping: best value so far, and evaluations since
    fitting          how many images at a time the device's memory was found to hold; None = as many as asked for
    compiled         whether the model's kernels are made by torch.compile; None = not decided yet
    skipped_steps    steps, from 0, whose gradient was not finite
    thresholds       of each class, chosen by the newest validation, where samples have sets of classes
    num_rows         rows of metrics.jsonl written so far; None = not known, as an earlier version did not count
    """

    sums: Sums
    step: int = 0
    best: dict[str, Any] | None = None
    best_loss: float | None = None
    stopping_best: float | None = None
    stopping_stale: int = 0
    ended_early: bool = False
    fitting: int | None = None
    compiled: bool | None = None
    skipped_steps: list[int] = field(default_factory=list)
    seconds: float = 0.0
    num_rows: int | None = 0
    thresholds: list[float] | None = None

    @classmethod
    def at_start(cls, num_shards: int) -> Progress:
        """Return the progress of a new run, whose global batches have so many shards."""
        return cls(sums=empty_sums(num_shards))

    def record_metrics(
        self, metrics: dict[str, float], epoch: int, best: Best | None, stopping: EarlyStopping | None
    ) -> bool:
        """Take in an evaluation; return True if it is the best so far.

        Of evaluations with the same value the one of the lower validation loss is the best, then the later one.
        """
        improved = False
        if best is not None and best.metric in metrics:
            value, loss = metrics[best.metric], metrics.get("val/loss")
            assert best.mode is not None, "resolved by the configuration"
            before = self.best["value"] if self.best else None
            if better(value, before, best.mode) or (value == before and _wins_tie(loss, self.best_loss)):
                self.best = {"metric": best.metric, "value": value, "step": self.step, "epoch": epoch}
                self.best_loss = loss
                improved = True
        if stopping is not None and stopping.metric in metrics:
            value = metrics[stopping.metric]
            assert stopping.mode is not None, "resolved by the configuration"
            if better(value, self.stopping_best, stopping.mode, stopping.min_delta):
                self.stopping_best, self.stopping_stale = value, 0
            else:
                self.stopping_stale += 1
            self.ended_early = self.stopping_stale >= stopping.patience
        return improved

    def state_dict(self, device: torch.device) -> dict[str, Any]:
        """Plain values and one tensor: every shard's sums, float64 [P, 2]. Call on every rank: it gathers.

        device   that the ranks talk through
        """
        return {
            "step": self.step,
            "sums_P2": torch.tensor(gather_sums(self.sums, device), dtype=torch.float64),
            "best": self.best,
            "best_loss": self.best_loss,
            "stopping_best": self.stopping_best,
            "stopping_stale": self.stopping_stale,
            "ended_early": self.ended_early,
            "fitting": self.fitting,
            "compiled": self.compiled,
            "skipped_steps": self.skipped_steps,
            "seconds": self.seconds,
            "num_rows": self.num_rows,
            "thresholds": self.thresholds,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], shards: range, num_shards: int) -> Progress:
        """Return saved progress for the rank with these shards. If their number has changed, shard 0 takes all sums."""
        values = {"num_rows": None, **state}
        saved_P2: Tensor = values.pop("sums_P2")
        saved: Sums = saved_P2.tolist()
        if len(saved) != num_shards:
            saved = [saved_P2.sum(dim=0).tolist(), *empty_sums(num_shards - 1)]
        return cls(sums=[row if shard in shards else [0.0, 0.0] for shard, row in enumerate(saved)], **values)


def _wins_tie(loss: float | None, earlier: float | None) -> bool:
    """Return True if a later evaluation is not worse by its validation loss; NaN is worse than any number."""
    if loss is None or earlier is None or math.isnan(earlier):
        return True
    return loss <= earlier
