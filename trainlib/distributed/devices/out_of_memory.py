"""What to do where a device's memory does not hold what must be computed at once, in one message."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trainlib.errors import UserError
from trainlib.models.forward.tta import Network
from trainlib.platform.accelerators import release_cached_memory

logger = logging.getLogger("trainlib")

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


class InPieces:
    """A network in eval mode that takes a batch in smaller pieces once the device's memory does not hold it whole.

    Raises torch.OutOfMemoryError where even a single image does not fit.
    """

    def __init__(self, network: Network):
        self._network = network
        self._most: int | None = None  # images at a time; None = as many as come

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits [N, C] of images [N, C, H, W]."""
        while True:
            size = min(len(images_NCHW), self._most or len(images_NCHW))
            try:
                logits = [self._network(piece) for piece in images_NCHW.split(size)]
                return logits[0] if len(logits) == 1 else torch.cat(logits)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            logits = []
            release_cached_memory(images_NCHW.device)
            self._most = -(-size // 2)
            logger.warning(
                "an evaluation of %d images at a time does not fit into the memory of %s: %d from now on",
                size,
                images_NCHW.device,
                self._most,
            )
