"""Where a device's memory does not hold a micro-batch: smaller ones, with the same gradient.

A gradient is added up over the pieces of a batch (docs/decisions/0002), so halving them changes no more than the order
of sums and, where there is BatchNorm, over how few images it normalises.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from trainlib.data.loader import Piece
from trainlib.distributed.process_group import from_all
from trainlib.errors import UserError
from trainlib.training.step.state import Engine
from trainlib.training.step.train_step import trial

logger = logging.getLogger("trainlib")

ADVICE = "choose a smaller train.batch_size or data.image_size, train.precision=bf16, or more processes"
STATES_OF_OPTIMIZER = 2  # tensors of a parameter's size, at most, that an optimizer makes at its first step


def cut(pieces: Sequence[Piece], limit: int | None) -> Sequence[Piece]:
    """The same samples in pieces of at most `limit`."""
    if limit is None or all(len(piece.ids_N) <= limit for piece in pieces):
        return pieces
    return [part for piece in pieces for part in _split(piece, limit)]


def _split(piece: Piece, limit: int) -> list[Piece]:
    tensors = (piece.ids_N, piece.images_NCHW, piece.labels_N, piece.cpu_labels_N)
    parts = zip(*(torch.split(tensor, limit) for tensor in tensors), strict=True)
    return [Piece(ids_N, images, labels_N, cpu_labels_N, piece.part) for ids_N, images, labels_N, cpu_labels_N in parts]


def smaller(pieces: Sequence[Piece], limit: int | None, engine: Engine) -> int:
    """The limit to try next, after a step with these pieces ran out of memory and left everything as it was.

    Raises UserError where there is no smaller one, or where other ranks wait for this one in the middle of the step.
    """
    size = max(len(piece.ids_N) for piece in cut(pieces, limit))
    if size == 1 or engine.accelerator.num_processes > 1 or engine.elastic is not None:
        raise UserError(
            f"train.micro_batch_size: {size} images at a time do not fit into the memory of {engine.accelerator.device}"
            f": set it to {max(1, size // 2)}, or {ADVICE}"
        )
    return _halved(size, engine)


def fitting(engine: Engine, stand_in: Tensor, size: int) -> int | None:
    """The largest number of images, halving `size`, of which every rank's device can hold a step; None = `size`.

    A trial of each size before training, in which ranks do not wait for each other, and agree on the smallest. Nothing
    of it stays. stand_in   one input of the engine's model. A collective.
    Raises UserError, on every rank, where one of them cannot hold a single image.
    """
    found = size
    while found and not _fits(engine, stand_in, found):
        found = _halved(found, engine) if found > 1 else 0
    every = from_all(found)
    if 0 in every:
        raise UserError(f"train.batch_size: rank {every.index(0)} cannot hold even one image in its memory: {ADVICE}")
    return min(every) if min(every) < size else None


def _fits(engine: Engine, stand_in: Tensor, size: int) -> bool:
    try:
        room = [torch.empty_like(p) for p in engine.parameters for _ in range(STATES_OF_OPTIMIZER)]
        trial(engine, stand_in.expand(size, *stand_in.shape[1:]))
        del room
    except torch.OutOfMemoryError:
        return False
    return True


def _halved(size: int, engine: Engine) -> int:
    """Call it outside of the handler of the error, which holds on to the tensors of the step."""
    if engine.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    half = -(-size // 2)
    logger.warning(
        "%d images at a time do not fit into the memory of %s: %d from now on, with the same gradient",
        size,
        engine.accelerator.device,
        half,
    )
    return half
