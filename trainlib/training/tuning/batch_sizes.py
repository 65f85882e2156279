"""The largest micro-batch that the devices of all ranks hold, and how fast each size is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainlib.distributed.process_group import gather_objects
from trainlib.platform.accelerators import release_cached_memory, synchronize
from trainlib.runs.machine.limits import available_memory
from trainlib.training.step.state import TrainState
from trainlib.training.step.train_step import trial
from trainlib.training.tuning.memory import fits

TIMED = 3  # passes of each size, of which the fastest counts
MARGIN = 16  # one image in so many more must fit: steps leave gaps in memory, which a single trial does not
SHARE = 0.5  # of a CPU's available memory that is filled at most


@dataclass(frozen=True)
class Trial:
    """One size that was tried: images at a time in each process, and images per second of all of them together.

    images_per_second   of a forward and a backward pass; None where the size does not fit on every rank
    """

    size: int
    images_per_second: float | None

    @property
    def fits(self) -> bool:
        """True if every rank's device holds it."""
        return self.images_per_second is not None


def search(
    most: int, try_size: Callable[[int], Trial], may_try: Callable[[int], bool] = lambda size: True
) -> list[Trial]:
    """Try 2, 4, 8, ... images up to `most`; where one does not fit, halve the distance to the largest that does.

    may_try   called before a larger size; False ends the search

    Return the trials in the order in which they were made. The search ends at a distance of an eighth: exact limits
    change with the fragmentation of memory.
    """
    trials: list[Trial] = []
    size, largest = min(2, most), 0
    while may_try(size):
        trials.append(try_size(size))
        if not trials[-1].fits:
            break
        largest = size
        if size == most:
            return trials
        size = min(2 * size, most)
    else:
        return trials
    too_large = size
    while too_large - largest > max(1, largest // 8):
        size = (largest + too_large) // 2
        trials.append(try_size(size))
        largest, too_large = (size, too_large) if trials[-1].fits else (largest, size)
    return trials


def try_sizes(state: TrainState, dummy_input: Tensor, most: int, held: int = 0) -> list[Trial]:
    """Return trials of rising sizes, which all ranks judge alike. Nothing of them stays. A collective.

    dummy_input   one input of the state's model
    most          images at a time to try at most
    held          the images of a step (see `fits`)

    On a CPU a size is only tried if it is expected to leave half of the available memory.
    """

    def try_size(size: int) -> Trial:
        every = gather_objects(_seconds(state, dummy_input, size, held))
        known = [seconds for seconds in every if seconds is not None]
        return Trial(size, size * len(every) / max(known) if len(known) == len(every) else None)

    if state.accelerator.device.type != "cpu":
        return search(most, try_size)
    room = MemoryRoom()
    return search(most, try_size, lambda size: all(gather_objects(room.holds(size))))


class MemoryRoom:
    """What larger sizes are expected to need of a CPU's memory, from what smaller ones needed."""

    def __init__(self) -> None:
        self._before = peak_memory()
        self._available = available_memory() / len(gather_objects(None))
        self._tried = 0

    def holds(self, size: int) -> bool:
        """Return True if a size is expected to fit, after the one tried before it."""
        needed = 0.0 if not self._tried else (peak_memory() - self._before) / self._tried * size
        self._tried = size
        return needed <= SHARE * self._available


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _seconds(state: TrainState, dummy_input: Tensor, size: int, held: int = 0) -> float | None:
    """Return the seconds of a forward and a backward pass of so many images; None where memory does not hold them."""
    if not fits(state, dummy_input, size + size // MARGIN, held):  # which also warms up
        release_cached_memory(state.accelerator.device)
        return None
    images_NCHW = dummy_input.expand(size, *dummy_input.shape[1:]).contiguous()
    best = float("inf")
    try:
        for _ in range(TIMED):
            began = time.perf_counter()
            trial(state, images_NCHW)
            synchronize(dummy_input.device)
            best = min(best, time.perf_counter() - began)
    except torch.OutOfMemoryError:
        best = 0.0
    if not best:  # outside of the handler, which holds on to the tensors
        release_cached_memory(state.accelerator.device)
        return None
    return best
