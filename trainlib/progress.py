"""How far a run has come: all that changes from step to step besides weights, optimizer and schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainlib.config import Best, EarlyStopping
from trainlib.metrics import better, gather_sums, zero_sums


@dataclass
class Progress:
    """The state of the loop; saved with each checkpoint.

    step             optimizer steps done
    sums_P2          this rank's sums over the current epoch so far (see `metrics`)
    best             {"metric", "value", "step", "epoch"} of the best evaluation, as the configuration defines it
    stopping_*       early stopping: best value so far, and evaluations since
    skipped_steps    steps, from 0, whose gradient was not finite
    """

    sums_P2: Tensor
    step: int = 0
    best: dict[str, Any] | None = None
    stopping_best: float | None = None
    stopping_stale: int = 0
    ended_early: bool = False
    skipped_steps: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def at_start(cls, num_parts: int, device: torch.device) -> Progress:
        return cls(sums_P2=zero_sums(num_parts, device))

    def note(self, metrics: dict[str, float], epoch: int, best: Best | None, stopping: EarlyStopping | None) -> bool:
        """Take in an evaluation; returns whether it is the best so far."""
        improved = False
        if best is not None and best.metric in metrics:
            value = metrics[best.metric]
            assert best.mode is not None, "resolved by the configuration"
            if better(value, self.best["value"] if self.best else None, best.mode):
                self.best = {"metric": best.metric, "value": value, "step": self.step, "epoch": epoch}
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

    def state_dict(self) -> dict[str, Any]:
        """Plain values and one tensor: every part's sums, float64 [P, 2]. Call on every rank: it gathers."""
        return {
            "step": self.step,
            "sums_P2": gather_sums(self.sums_P2),
            "best": self.best,
            "stopping_best": self.stopping_best,
            "stopping_stale": self.stopping_stale,
            "ended_early": self.ended_early,
            "skipped_steps": self.skipped_steps,
            "seconds": self.seconds,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], parts: range, num_parts: int, device: torch.device) -> Progress:
        """The saved progress on the rank with these parts. If batches had other parts then, part 0 takes all sums."""
        values = dict(state)
        saved_P2: Tensor = values.pop("sums_P2")
        if len(saved_P2) != num_parts:
            together_2 = saved_P2.sum(dim=0)
            saved_P2 = torch.zeros(num_parts, 2, dtype=saved_P2.dtype)
            saved_P2[0] = together_2
        sums_P2 = torch.zeros_like(saved_P2)
        sums_P2[parts.start : parts.stop] = saved_P2[parts.start : parts.stop]
        return cls(sums_P2=sums_P2.to(device), **values)
