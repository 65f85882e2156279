"""Applying the gradient of a step, unless it is not finite: three ways, chosen once for a run.

After an update it is known that the optimizer stepped (APPLIED) or did not (SKIPPED), or only the device knows yet
(PENDING) and the host reads it later, together with the numbers of many steps.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.optim import Optimizer

from trainlib.config import TrainConfig
from trainlib.models.optimizers.build import skips_on_found_inf
from trainlib.training.metrics.sums import to_host

MIN_LOSS_SCALE = 1.0  # below it, a gradient that still overflows fp16 is no matter of scale


class UpdateStatus(Enum):
    """Tells whether the optimizer stepped: it did, it did not, or only the device knows yet."""

    APPLIED = "applied"
    SKIPPED = "skipped"
    PENDING = "pending"


class CheckedUpdate:
    """Steps after the host has read that the gradient's norm and the losses are finite. Waits for the device.

    stepped   the optimizer that is called at each step, and that a scheduler must see
    """

    def __init__(self, optimizer: Optimizer):
        self.stepped = optimizer

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss from which `backward` computes the gradients: the same, without a loss scale."""
        return loss

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of a loss. Accelerate's own `backward` would add a division by 1 to the graph."""
        loss.backward()

    def unscale_gradients(self) -> None:
        """Do nothing: gradients are not scaled."""

    def apply(self, grad_norm: Tensor, losses: Sequence[Tensor]) -> tuple[UpdateStatus, Sequence[float]]:
        """Let the optimizer step if all values are finite.

        grad_norm   of the whole gradient, before clipping: a scalar
        losses      this rank's, of each micro-batch: scalars
        Returns the status, and the values of the norm and the losses where the host knows them.
        """
        values = to_host([grad_norm, *losses])
        if not all(map(math.isfinite, values)):
            return UpdateStatus.SKIPPED, values
        self.stepped.step()
        return UpdateStatus.APPLIED, values

    def overflow_is_expected(self) -> bool:
        """Return True if a gradient that is not finite is part of finding the loss scale, and not a fault."""
        return False

    def state_dict(self) -> dict[str, Any] | None:
        """Return the loss scaler's state; None where there is no scaler."""
        return None

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from a state that `state_dict` returned."""


class DeviceCheckedUpdate(CheckedUpdate):
    """Steps without waiting for the GPU: the optimizer's kernels leave all weights unchanged where a flag is 1.

    Once a gradient is not finite, all later steps are skipped too. What BatchNorm saw of them is not undone: the run
    ends where the host reads of it.
    """

    def __init__(self, optimizer: Optimizer):
        super().__init__(optimizer)
        self._one: Tensor | None = None

    def apply(
        self, grad_norm: Tensor, losses: Sequence[Tensor], rates: Sequence[Tensor] | None = None
    ) -> tuple[UpdateStatus, Sequence[float]]:
        """Let the kernels step if all values are finite now, and were at all steps before.

        rates   of the groups, scalars of the device, while a graph is captured; None: the groups' own

        The flag is torch's own, made for loss scalers: `found_inf`, 1.0 where a gradient is not finite.
        """
        if self._one is None:
            self._one = torch.ones((), device=grad_norm.device)
            self.stepped.found_inf = torch.zeros((), device=grad_norm.device)  # type: ignore[attr-defined]
        # torch's own check for loss scalers, one kernel: it sets the flag, never clears it, and multiplies by one.
        values = [grad_norm.detach(), *(loss.detach() for loss in losses)]
        torch._amp_foreach_non_finite_check_and_unscale_(values, self.stepped.found_inf, self._one)  # type: ignore[attr-defined]
        with rates_of_float32(self.stepped, rates):
            self.stepped.step()
        return UpdateStatus.PENDING, ()


@contextmanager
def rates_of_float32(optimizer: Optimizer, rates: Sequence[Tensor] | None = None) -> Iterator[None]:
    """Context manager: the groups' learning rates are of float32 inside, or these scalars of the device.

    Kernels take a rate as a number of float64 or as a scalar of float32. A graph can change only the latter, and a step
    must give the same bits in a graph and outside.
    """
    groups = optimizer.param_groups
    own: list[dict[str, Any]] = [
        {name: group[name] for name in ("lr", "capturable") if name in group} for group in groups
    ]
    for i, group in enumerate(groups):
        if rates is None:
            group["lr"] = struct.unpack("f", struct.pack("f", group["lr"]))[0]
        else:
            group |= {"lr": rates[i]} | ({"capturable": True} if "capturable" in group else {})
    try:
        yield
    finally:
        for group, values in zip(groups, own, strict=True):
            group.update(values)


class ScaledUpdate(CheckedUpdate):
    """Steps through the fp16 loss scaler, which looks for overflow itself, skips, and scales less the next time.

    stepped   Accelerate's wrapper around the optimizer. It looks through the whole search path for an optional package
              at each step, 0.3 ms, so it is used only here.
    """

    def __init__(self, optimizer: AcceleratedOptimizer, accelerator: Accelerator):
        super().__init__(optimizer)
        self._optimizer = optimizer
        self._accelerator = accelerator
        self._scaler = accelerator.scaler

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss times the loss scale."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of the scaled loss."""
        self._accelerator.backward(loss)

    def unscale_gradients(self) -> None:
        """Divide the gradients by the loss scale."""
        self._accelerator.unscale_gradients(self._optimizer)

    def apply(self, grad_norm: Tensor, losses: Sequence[Tensor]) -> tuple[UpdateStatus, Sequence[float]]:
        """Let the loss scaler decide whether the optimizer steps.

        A lower scale than before tells of a step that was skipped. Accelerate's `step_was_skipped` would not: it asks
        whether the optimizer was called, and fused kernels are called in either case.
        """
        before = self._scaler.get_scale()
        self.stepped.step()
        return (UpdateStatus.SKIPPED if self._scaler.get_scale() < before else UpdateStatus.APPLIED), ()

    def overflow_is_expected(self) -> bool:
        """Return True as long as the loss scale can be lowered."""
        return bool(self._scaler.get_scale() >= MIN_LOSS_SCALE)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the loss scaler's state."""
        state: dict[str, Any] = self._scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go on from a loss scaler's state; from another precision's, which is None, begin a new one."""
        if state is not None:
            self._scaler.load_state_dict(state)


def choose_update(config: TrainConfig, accelerator: Accelerator, optimizer: AcceleratedOptimizer) -> CheckedUpdate:
    """Return the cheapest way to apply gradients that keeps what the configuration asks for.

    The host need not wait on a GPU whose optimizer skips by itself; but where training is to go on after a step that
    was skipped, the schedule must know of it at once.
    """
    if accelerator.scaler is not None:
        return ScaledUpdate(optimizer, accelerator)
    plain = optimizer.optimizer
    if accelerator.device.type != "cpu" and skips_on_found_inf(plain) and config.on_nonfinite != "skip":
        return DeviceCheckedUpdate(plain)
    return CheckedUpdate(plain)
