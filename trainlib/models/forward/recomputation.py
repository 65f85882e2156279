"""Activations that are computed again in the backward pass, instead of being kept: `model.checkpoint_activations`.

The method is that of Chen, Xu, Zhang and Guestrin, "Training deep nets with sublinear memory cost" (2016), by
torch.utils.checkpoint. A block keeps its inputs alone. What it computes the second time has the same bits as the first:
dropout draws the same numbers, and buffers, such as BatchNorm's running statistics, are as they were before it and do
not move twice.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from trainlib.errors import UserError

FEWEST_LAYERS = 3  # layers with weights that a sequence must have to be cut into segments

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_thread = threading.local()


class Recomputation:
    """One forward pass of a block, and its repetition.

    is_replaying   True in the repetition
    """

    def __init__(self, modules: Sequence[nn.Module], inputs: Sequence[Any]):
        self.is_replaying = False
        self._values: list[Any] = []
        self._position = 0
        self._buffers = [buffer for module in modules for buffer in module.buffers()]
        self._before = [buffer.clone() for buffer in self._buffers]
        self._inputs = list(_tensors(inputs))
        self._versions = [tensor._version for tensor in self._inputs]
        self._name = type(modules[0]).__name__

    def keep(self, value: Any) -> None:
        """Keep a value that the repetition must not compute anew, as it took other ranks."""
        self._values.append(value)

    def next_value(self) -> Any:
        """Return the values that were kept, one after another."""
        self._position += 1
        return self._values[self._position - 1]

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return the contexts of the first pass and of the repetition."""
        return self._first(), self._again()

    def require_unchanged_inputs(self) -> None:
        """Raise UserError if a layer has written into the block's input, from which it could not be repeated."""
        if any(tensor._version != version for tensor, version in zip(self._inputs, self._versions, strict=True)):
            raise UserError(
                f"model.checkpoint_activations: got true, but {self._name} changes its input in place, so that it "
                "cannot be computed again: leave it out"
            )

    @contextmanager
    def _first(self) -> Iterator[None]:
        with self._active():
            yield

    @contextmanager
    def _again(self) -> Iterator[None]:
        self.require_unchanged_inputs()
        now = [buffer.clone() for buffer in self._buffers]
        self.is_replaying = True
        try:
            self._set_buffers(self._before)
            with self._active():
                yield
        finally:
            self._set_buffers(now)

    @contextmanager
    def _active(self) -> Iterator[None]:
        outer = active_recomputation()
        _thread.active = self
        try:
            yield
        finally:
            _thread.active = outer

    @torch.no_grad()
    def _set_buffers(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self._buffers, values, strict=True):
            buffer.copy_(value)


def active_recomputation() -> Recomputation | None:
    """Return the pass of a block that this thread is in; None outside of such blocks."""
    return getattr(_thread, "active", None)


def recompute_blocks(module: nn.Module) -> int:
    """Have every block of a module computed again in the backward pass, in place; return the number of blocks.

    A block is a residual or attention block, or whatever else a module repeats; of a plain sequence of layers, as VGG
    has, a segment of them. Names and parameters stay as they are. Raises UserError for a module that has no such parts.
    """
    blocks, sequences = _find_blocks(module)
    for block in blocks:
        block.__dict__["forward"] = MethodType(_forward_block, block)
    for sequence in sequences:
        sequence.__dict__["forward"] = MethodType(_forward_segments, sequence)
    if not blocks and not sequences:
        raise UserError(
            f"model.checkpoint_activations: got true, but {type(module).__name__} has no blocks, and no sequence of "
            f"{FEWEST_LAYERS} layers or more, that could be computed again: leave it out"
        )
    return len(blocks) + sum(len(_segments(sequence)) for sequence in sequences)


def keep_activations(module: nn.Module) -> None:
    """Undo `recompute_blocks`."""
    for part in module.modules():
        forward = part.__dict__.get("forward")
        if isinstance(forward, MethodType) and forward.__func__ in (_forward_block, _forward_segments):
            del part.forward


def _find_blocks(module: nn.Module) -> tuple[list[nn.Module], list[nn.Sequential]]:
    """Return the blocks inside of a module, and the sequences of single layers."""
    if isinstance(module, nn.Sequential) and _num_layers(module) >= FEWEST_LAYERS:
        return [], [module]
    blocks: list[nn.Module] = []
    sequences: list[nn.Sequential] = []
    for child in module.children():
        if _is_layer(child) or "forward" in child.__dict__:
            continue
        is_list = type(child) in _CONTAINERS
        if is_list or _holds_blocks(child) or (isinstance(child, nn.Sequential) and _num_layers(child)):
            inner_blocks, inner_sequences = _find_blocks(child)
            blocks += inner_blocks
            sequences += inner_sequences
            if inner_blocks or inner_sequences or sum(map(_has_weights, child.modules())) < 2:
                continue
        if next(child.parameters(), None) is not None:
            blocks.append(child)
    return blocks, sequences


def _is_layer(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _num_layers(module: nn.Sequential) -> int:
    """Return how many layers with weights a sequence of single layers has; 0 for one that holds other modules."""
    return sum(map(_has_weights, module)) if all(map(_is_layer, module)) else 0


def _holds_blocks(module: nn.Module) -> bool:
    """Return True for a stage of a network: it, or a list in it, holds several modules of one class."""
    for holder in (module, *module.children()):
        parts = list(holder.children()) if holder is module or isinstance(holder, _CONTAINERS) else []
        parts = [part for part in parts if not _is_layer(part)]
        classes = {type(part) for part in parts}
        if len(parts) > 1 and len(classes) == 1 and not isinstance(parts[0], nn.Sequential):
            return True
    return False


def _has_weights(layer: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in layer.parameters(recurse=False))


def _segments(sequence: nn.Sequential) -> list[list[nn.Module]]:
    """Return the layers in about sqrt(n) segments, each of which begins with a layer that has weights."""
    with_weights = [index for index, layer in enumerate(sequence) if _has_weights(layer)]
    size = math.ceil(math.sqrt(len(with_weights)))
    starts = [0, *with_weights[size::size], len(sequence)]
    return [list(sequence)[start:end] for start, end in pairwise(starts)]


def _forward_block(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a block in such a way that it is computed again in the backward pass."""
    return _run([block], partial(type(block).forward, block), *args, **kwargs)


def _forward_segments(sequence: nn.Sequential, values: Tensor) -> Tensor:
    """Run a sequence of layers, segment by segment, in such a way that each is computed again."""
    for segment in _segments(sequence):
        values = _run(segment, partial(_forward_layers, segment), values)
    return values


def _forward_layers(layers: Sequence[nn.Module], values: Tensor) -> Tensor:
    for layer in layers:
        values = layer(values)
    return values


def _run(modules: Sequence[nn.Module], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    args = tuple(list(value) if isinstance(value, list) else value for value in args)  # DenseNet's grow afterwards
    inputs = (*args, *kwargs.values())
    needed = [tensor.requires_grad for tensor in _tensors(inputs)]
    needed += [parameter.requires_grad for module in modules for parameter in module.parameters()]
    if not torch.is_grad_enabled() or not any(needed):
        return function(*args, **kwargs)
    region = Recomputation(modules, inputs)
    result = checkpoint(partial(function, **kwargs), *args, use_reentrant=False, context_fn=region.contexts)
    region.require_unchanged_inputs()
    return result


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors among values and in the lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
