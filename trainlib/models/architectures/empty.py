"""Building of modules without memory for their parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def empty_init() -> Iterator[None]:
    """Context manager: modules built inside have their parameters on the meta device, without memory or values.

    `torch.device("meta")` would not do: RegNet computes its widths with tensors, and reads them.
    """
    from accelerate import init_empty_weights

    with torch.device("cpu"), init_empty_weights(include_buffers=False):
        yield
