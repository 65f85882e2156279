"""What to do where a device's memory does not hold what must be computed at once, in one message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainlib.errors import UserError

ADVICE = "choose a smaller train.batch_size or data.image_size, train.precision=bf16, or more processes"


def smaller_batch(size: int) -> str:
    """Return the way out for `--batch-size`, where this many images at a time did not fit."""
    if size > 1:
        return f"use --batch-size {size // 2}"
    return "use a device with more memory, or the CPU: CUDA_VISIBLE_DEVICES= launch ..."


@contextmanager
def explained(what: str, advice: str = ADVICE) -> Iterator[None]:
    """Context manager: turn torch.OutOfMemoryError into a UserError that says what did not fit, and the ways out.

    what   subject of the message, such as "the optimizer's step"
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{what} does not fit into the memory of the device: {advice} ({reason:.300})") from error
