"""The exponential moving average (EMA) of a model's weights over the steps of training.

Where `train.average` is set, the average is evaluated, saved and exported in place of the last weights. The method is
that of Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992), with exponentially falling
weights instead of equal ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from trainlib.models.weights.snapshot import is_all_finite


def update_decay(update: int, decay: float, every: int, warmup: str | int) -> float:
    """Return the weight of the old average in one update: `decay`, and less in the first ones.

    update   its number, from 1
    every    steps from one update to the next
    warmup   `tensorflow` or `timm`: by the formula of TensorFlow's ExponentialMovingAverage or timm's ModelEmaV3. A
             number of steps: 0 until then and in the update behind it, so that the average is a copy of the weights,
             as in torchvision's training script; `none` is 0 steps
    """
    if warmup == "tensorflow":
        return min(decay, update / (9 + update))
    if warmup == "timm":
        return min(decay, 1.0 - math.pow(update, -2 / 3))
    steps = warmup if isinstance(warmup, int) else 0
    return 0.0 if (update - 1) * every <= steps else decay


def scaled_decay(decay: float, every: int, batch_size: int, epochs: float) -> float:
    """Return the decay of torchvision's training script, which scales 1 - decay by the size and number of updates."""
    return 1 - min(1.0, (1 - decay) * batch_size * every / epochs)


class ExponentialMovingAverage:
    """The exponential moving average of a module's trained parameters and floating-point buffers.

    A buffer that holds infinities, such as a mask of attention, is left alone: there are no averages of them.

    It begins as a copy of the module. At every `every`-th applied step it becomes d * average + (1 - d) * module, where
    d is `decay_of(n)` at update n, counted from 1 (see `update_decay`).

    Every rank keeps its own: equal weights have equal averages. BatchNorm's statistics may differ between ranks; as
    without an average, rank 0's are those that count. No method waits for the device.
    """

    def __init__(self, module: nn.Module, decay_of: Callable[[int], float], every: int):
        self._decay_of = decay_of
        self._every = every
        self._num_steps = 0
        averaged = {
            tensor: name  # one name, where a tensor has several
            for name, tensor in module.state_dict(keep_vars=True).items()
            if tensor.is_floating_point()
            and (tensor.requires_grad if isinstance(tensor, nn.Parameter) else is_all_finite(tensor))
        }
        self._in_module: dict[str, Tensor] = {name: tensor for tensor, name in averaged.items()}
        # The average while the module holds its own weights; the module's own weights while it holds the average.
        self._outside = [tensor.detach().clone() for tensor in self._in_module.values()]
        self._is_swapped_in = False

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's weights; to be called after every optimizer step that was applied."""
        self._num_steps += 1
        if self._num_steps % self._every == 0:
            decay = self._decay_of(self._num_steps // self._every)
            torch._foreach_lerp_(self._outside, list(self._in_module.values()), 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Context manager: inside, the module holds the average. Its tensors stay at their place in memory."""
        was_swapped_in = self._is_swapped_in
        self.swap_in()
        try:
            yield
        finally:
            if not was_swapped_in:
                self._swap()

    def swap_in(self) -> None:
        """Put the average into the module for good, when no training step follows."""
        if not self._is_swapped_in:
            self._swap()

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by name, outside of `swapped_in`."""
        assert not self._is_swapped_in, "the module holds the averages now"
        return {f"the EMA of {name}": tensor for name, tensor in zip(self._in_module, self._outside, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and the module's own weights, to be saved beside a module that holds the average.

        Call it inside `swapped_in`, and take the module's state_dict there too.
        """
        assert self._is_swapped_in, "the module's state beside this one must be the average"
        return {
            "averaged_steps": self._num_steps,
            "raw_weights": dict(zip(self._in_module, self._outside, strict=True)),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, right after construction around a module that holds the average."""
        self._num_steps = state["averaged_steps"]
        for name, tensor in self._in_module.items():
            tensor.copy_(state["raw_weights"][name])

    @torch.no_grad()
    def _swap(self) -> None:
        self._is_swapped_in = not self._is_swapped_in
        for tensor, other in zip(self._in_module.values(), self._outside, strict=True):
            before = tensor.clone()
            tensor.copy_(other)
            other.copy_(before)


class NoAverage:
    """The stand-in where no average is configured: the weights themselves are evaluated and kept."""

    def update(self) -> None:
        """Do nothing."""

    def swapped_in(self) -> AbstractContextManager[None]:
        """Return an empty context."""
        return nullcontext()

    def swap_in(self) -> None:
        """Do nothing."""

    def tensors(self) -> dict[str, Tensor]:
        """Return no averages."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""
