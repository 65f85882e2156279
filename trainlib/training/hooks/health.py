"""How gradients and weights fare, looked at every so many steps: norms, update-to-weight ratios and histograms.

Off by default. When on, a look costs one copy of the weights and a pass over them; the steps between cost nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainlib.runs.files.json_records import timestamp
from trainlib.training.hooks import Hook, Tracker

if TYPE_CHECKING:
    from trainlib.training.trainer import Trainer

logger = logging.getLogger("trainlib.training.hooks.health")

NUM_BINS = 64
CHUNK = 2**24  # elements that a histogram takes at a time: their bins are 64-bit numbers


class Health:
    """Looks at the weights just before and just after an optimizer's step, through its hooks.

    position   the step under way and its epoch, both counted from 1
    log        takes a row: {"time", "step", "epoch", "gradient_norm", "weight_norm", "update_ratio": each a number by
               parameter, "histograms": by `gradients/<parameter>` and `weights/<parameter>`}

    Gradients are those that the optimizer applies: of the whole batch, and clipped. An update ratio is the norm of what
    the step changed over the norm of the weights before; around 1e-3 is usual. Nothing here draws random numbers, or
    writes to what training reads.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        every: int,
        position: Callable[[], tuple[int, int]],
        log: Callable[[Mapping[str, Any]], None],
    ):
        self._module = module
        self._parameters: dict[str, nn.Parameter] = {}
        self._every = every
        self._position = position
        self._log = log
        self._row: dict[str, Any] | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._unless_it_fails(self._before)),
            optimizer.register_step_post_hook(lambda *_: self._unless_it_fails(self._after)),
        ]

    def close(self) -> None:
        """Look no more."""
        for hook in self._hooks:
            hook.remove()

    def _before(self) -> None:
        step, epoch = self._position()
        if step % self._every:
            return
        self._parameters = {name: p for name, p in self._module.named_parameters() if p.requires_grad}
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        self._row = {"time": timestamp(), "step": step, "epoch": epoch, "gradient_norm": norms(gradients)}
        self._row["histograms"] = {f"gradients/{name}": histogram(value) for name, value in gradients.items()}
        self._weights = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def _after(self) -> None:
        if self._row is None:
            return
        before, row = self._weights, self._row
        row["weight_norm"] = norms(before)
        changes = norms({name: parameter.detach() - before[name] for name, parameter in self._parameters.items()})
        row["update_ratio"] = {
            name: changes[name] / norm if (norm := row["weight_norm"][name]) else None for name in changes
        }
        row["histograms"] |= {f"weights/{name}": histogram(value) for name, value in self._parameters.items()}
        self._row, self._weights = None, {}
        self._log(row)

    def _unless_it_fails(self, look: Callable[[], None]) -> None:
        """Training must not end because there is too little memory to look at it."""
        try:
            look()
        except RuntimeError as error:
            logger.warning("gradients and weights are no longer looked at (%s)", error)
            self._row, self._weights = None, {}
            self.close()


class HealthHook(Hook):
    """Gives rows on gradients and weights of every so many steps to trackers."""

    def __init__(self, trackers: Sequence[Tracker], every: int):
        self._trackers = trackers
        self._every = every
        self._health: Health | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Begin to look at the optimizer's steps."""
        plan, progress = trainer.plan, trainer.progress
        self._health = Health(
            trainer.state.classifier.module,
            trainer.state.optimizer.optimizer,
            self._every,
            position=lambda: (progress.step + 1, plan.epoch_of(progress.step) + 1),
            log=self._log,
        )

    def close(self) -> None:
        """Look no more."""
        if self._health is not None:
            self._health.close()

    def _log(self, row: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.log(row)


def norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the 2-norm of each tensor, by name."""
    values = torch._foreach_norm([tensor.detach().float() for tensor in tensors.values()]) if tensors else []
    return dict(zip(tensors, torch.stack(list(values)).tolist() if values else [], strict=True))


@torch.no_grad()
def histogram(values: Tensor) -> dict[str, Any]:
    """Of the finite values: NUM_BINS + 1 edges, the counts between them, and the sum of values and of their squares.

    A bin holds its lower edge; the last one holds both. Where all values are the same the edges lie around them.
    """
    finite = values.detach().float().flatten()
    finite = finite[finite.isfinite()]
    if not len(finite):
        return {"edges": [0.0, 1.0], "counts": [0], "sum": 0.0, "sum_squares": 0.0}
    total, squares = finite.double().sum(), finite.double().square().sum()
    low, high, total_sum, sum_squares = torch.stack(
        [finite.min().double(), finite.max().double(), total, squares]
    ).tolist()
    if low == high:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / NUM_BINS
    counts = torch.zeros(NUM_BINS, dtype=torch.int64, device=finite.device)
    for start in range(0, len(finite), CHUNK):
        bins = ((finite[start : start + CHUNK].double() - low) / width).long().clamp_(0, NUM_BINS - 1)
        counts += torch.bincount(bins, minlength=NUM_BINS)
    edges = [low + width * index for index in range(NUM_BINS)] + [high]
    return {"edges": edges, "counts": counts.tolist(), "sum": total_sum, "sum_squares": sum_squares}
