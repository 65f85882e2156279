"""Building of modules without memory for their parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from trainlib.errors import UserError


@contextmanager
def empty_init() -> Iterator[None]:
    """Context manager: modules built inside have their parameters on the meta device, without memory or values.

    `torch.device("meta")` would not do: RegNet computes its widths with tensors, and reads them.
    """
    from accelerate import init_empty_weights

    with torch.device("cpu"), init_empty_weights(include_buffers=False):
        yield


def build_empty(build: Callable[[], nn.Module]) -> nn.Module:
    """Call a function that builds a module for values that follow: its parameters have none of their own, nor memory.

    Buffers are computed: files of weights leave out those that are the same for all, as timm's BEiT has. Where that
    needs parameters with values, as in timm's Swin, they have some. Torch's random generators are left as they were.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        with suppress(RuntimeError, UserError), empty_init():  # what is not the missing values' fault is raised below
            module = build()
            if not any(buffer.is_meta for buffer in module.buffers()):
                return module
        return build()
