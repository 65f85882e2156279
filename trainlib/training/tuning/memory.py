"""Where a device's memory does not hold a micro-batch: smaller ones, with the same gradient.

A gradient is added up over the pieces of a batch (docs/decisions/0002), so halving them changes no more than the order
of sums and, where there is BatchNorm, over how few images it normalises.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from trainlib.data.batches.loader import MicroBatch
from trainlib.distributed.devices.out_of_memory import ADVICE
from trainlib.distributed.process_group import gather_objects
from trainlib.errors import UserError
from trainlib.models.forward.synchronized_batchnorm import synchronized_layers
from trainlib.platform.accelerators import release_cached_memory
from trainlib.training.metrics.progress import Progress
from trainlib.training.step.graph import GraphSteps
from trainlib.training.step.state import TrainState
from trainlib.training.step.train_step import StepResult, train_step, trial

logger = logging.getLogger("trainlib")

STATES_OF_OPTIMIZER = 2  # tensors of a parameter's size, at most, that an optimizer makes at its first step


def step_that_fits(
    state: TrainState,
    progress: Progress,
    micro_batches: Sequence[MicroBatch],
    denominator: float,
    graph: GraphSteps | None = None,
) -> StepResult:
    """Train one step in micro-batches that fit the device's memory; the limit found holds for later steps.

    graph   replays the step where it can; the micro-batches are raw ones then
    """
    if graph is not None:
        if (result := graph.step(progress.step, micro_batches, denominator)) is not None:
            return result
        micro_batches = [graph.finished(raw) for raw in micro_batches]
    while True:
        with suppress(torch.OutOfMemoryError):
            return train_step(state, progress.step, split_to_limit(micro_batches, progress.fitting), denominator)
        if graph is None or not graph.give_up("as memory ran out"):
            progress.fitting = next_limit(micro_batches, progress.fitting, state)


def split_to_limit(micro_batches: Sequence[MicroBatch], limit: int | None) -> Sequence[MicroBatch]:
    """Return the same samples in micro-batches of at most `limit` images."""
    if limit is None or all(len(micro_batch.ids_N) <= limit for micro_batch in micro_batches):
        return micro_batches
    return [part for micro_batch in micro_batches for part in _split(micro_batch, limit)]


def _split(micro_batch: MicroBatch, limit: int) -> list[MicroBatch]:
    tensors = (torch.split(tensor, limit) for tensor in (micro_batch.ids_N, micro_batch.images_NCHW))
    parts = zip(*tensors, micro_batch.targets.split(limit), strict=True)
    return [MicroBatch(ids_N, images, targets, micro_batch.shard) for ids_N, images, targets in parts]


def next_limit(micro_batches: Sequence[MicroBatch], limit: int | None, state: TrainState) -> int:
    """Return the limit to try next, after a step with these micro-batches ran out of memory and changed nothing.

    Raises UserError where there is no smaller one, or where other ranks wait for this one in the middle of the step.
    """
    size = max(len(micro_batch.ids_N) for micro_batch in split_to_limit(micro_batches, limit))
    if size == 1 or state.accelerator.num_processes > 1 or state.reducer.fixes_micro_batches:
        raise _too_large(size, state)
    return _halved(size, state)


def find_limit(state: TrainState, dummy_input: Tensor, size: int, held: int = 0) -> int | None:
    """Return the most images, halving `size`, that a step on every rank's device can hold; None = `size`.

    A trial of each size before training, in which ranks do not wait for each other, and agree on the smallest. Nothing
    of it stays. A collective.

    dummy_input   one input of the state's model
    held          the images of a step, which are all on the device while it is computed

    Raises UserError, on every rank, where one of them cannot hold a single image.
    """
    found = size
    while found and not fits(state, dummy_input, found, held):
        found = _halved(found, state) if found > 1 else 0
    every = gather_objects(found)
    if 0 in every:
        raise UserError(f"train.batch_size: rank {every.index(0)} cannot hold even one image in its memory: {ADVICE}")
    return min(every) if min(every) < size else None


def require_fit(state: TrainState, dummy_input: Tensor, size: int, held: int = 0) -> None:
    """Raise UserError where a step of `size` images does not fit, for a reducer that allows no smaller ones."""
    if not fits(state, dummy_input, size, held):
        raise _too_large(size, state)


def fits(state: TrainState, dummy_input: Tensor, size: int, held: int = 0) -> bool:
    """Return True if this rank's device holds a step of so many images at a time; nothing of the trial stays.

    held   the images of all micro-batches of a step together
    """
    shape = dummy_input.shape[1:]
    num_states = 0 if state.optimizer.state else STATES_OF_OPTIMIZER  # a resumed run has them already
    try:
        room = [torch.empty_like(p) for p in state.parameters for _ in range(num_states)]
        room.append(dummy_input.new_empty(max(0, held - size), *shape))
        room.append(dummy_input.new_empty(size, *shape, dtype=torch.uint8))  # the last ones, as they were read
        trial(state, dummy_input.expand(size, *shape).contiguous())
        del room
    except torch.OutOfMemoryError:
        return False
    return True


def _too_large(size: int, state: TrainState) -> UserError:
    key, way = "train.micro_batch_size", f"set it to {max(1, size // 2)}"
    if synchronized_layers(state.classifier.module):  # which need the whole batch at once
        key, way = "model.sync_batchnorm", "set model.checkpoint_activations to true"
    where = state.accelerator.device
    return UserError(f"{key}: {size} images at a time do not fit into the memory of {where}: {way}, or {ADVICE}")


def _halved(size: int, state: TrainState) -> int:
    """Call it outside of the handler of the error, which holds on to the tensors of the step."""
    release_cached_memory(state.accelerator.device)
    half = -(-size // 2)
    logger.warning(
        "%d images at a time do not fit into the memory of %s: %d from now on, with the same gradient",
        size,
        state.accelerator.device,
        half,
    )
    return half
