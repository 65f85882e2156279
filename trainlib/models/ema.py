"""An average of the weights over the steps: what is evaluated, kept and published in place of the last ones.

Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging", with exponentially falling weights
instead of equal ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """The exponential moving average of a module's trained parameters and floating-point buffers.

    It begins as a copy of the module. At every `every`-th applied step it becomes d · average + (1 - d) · module, where
    d is (1 + n) / (10 + n) after n such updates, until that is `decay`: so the first weights, which are far from where
    training leads, are forgotten soon (the rule of TensorFlow's ExponentialMovingAverage).

    Every rank keeps it for itself: equal weights have equal averages. BatchNorm's statistics may differ between ranks;
    as without an average, rank 0's are those that count. Nothing here waits for the device.
    """

    def __init__(self, module: nn.Module, decay: float, every: int):
        self._decay = decay
        self._every = every
        self._num_steps = 0
        self._in_module: dict[str, Tensor] = {
            name: tensor
            for name, tensor in module.state_dict(keep_vars=True).items()
            if tensor.is_floating_point() and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))
        }
        self._aside = [tensor.detach().clone() for tensor in self._in_module.values()]
        self._is_in_place = False

    @torch.no_grad()
    def after_step(self) -> None:
        """Call after every optimizer step that was applied."""
        self._num_steps += 1
        if self._num_steps % self._every == 0:
            num_updates = self._num_steps // self._every - 1
            decay = min(self._decay, (1 + num_updates) / (10 + num_updates))
            torch._foreach_lerp_(self._aside, list(self._in_module.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the module is the average, and its own weights are put aside. Their memory stays where it is."""
        was_in_place = self._is_in_place
        self.stay_in_place()
        try:
            yield
        finally:
            if not was_in_place:
                self._exchange()

    def stay_in_place(self) -> None:
        """From here on the module is the average: when no step follows."""
        if not self._is_in_place:
            self._exchange()

    def state_dict(self) -> dict[str, Any]:
        """What is to be kept beside the module's state, both taken inside `in_place`."""
        assert self._is_in_place, "the module's state beside this one must be the average"
        return {"averaged_steps": self._num_steps, "raw_weights": dict(zip(self._in_module, self._aside, strict=True))}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: right after this was made from a module that held the average."""
        self._num_steps = state["averaged_steps"]
        for name, tensor in self._in_module.items():
            tensor.copy_(state["raw_weights"][name])

    @torch.no_grad()
    def _exchange(self) -> None:
        self._is_in_place = not self._is_in_place
        for tensor, other in zip(self._in_module.values(), self._aside, strict=True):
            before = tensor.clone()
            tensor.copy_(other)
            other.copy_(before)
