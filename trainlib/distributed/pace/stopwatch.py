"""A stopwatch of one rank's own work: it stands still while the rank waits for others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

_GPU_STEPS = 8  # of which one is measured: events cost the host some microseconds
_MOST_PARTS = 1000  # measured on a GPU and not read yet


class Marks(Protocol):
    """How moments are noted, and the seconds between two of them are read."""

    every: int

    def now(self) -> Any:
        """Return this moment."""

    def seconds(self, start: Any, end: Any) -> float:
        """Return the seconds between two moments."""


class HostMarks:
    """Moments by the host's clock: a CPU computes while the host waits for it."""

    every = 1

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.now = clock

    def seconds(self, start: float, end: float) -> float:
        """Return the seconds between two moments."""
        return end - start


class GpuMarks:
    """Moments in the order of what a GPU computes, which the host only asks for; read when the GPU has come to them."""

    every = _GPU_STEPS

    def now(self) -> torch.cuda.Event:
        """Return a moment behind all that the GPU was asked to compute so far."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the seconds between two moments. Waits for the GPU."""
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


class Stopwatch:
    """Measures a rank's own time per sample, between its waits for other ranks.

    Of a step it sees what comes before the first shard, and the first shard: ranks with several virtual shards, which
    compute the last of them while others are done, are measured at the same work as those with one.

    counts_fetching   whether waiting for the next batch counts: only where all ranks prepare the same number of samples
    """

    def __init__(self, marks: Marks, *, counts_fetching: bool = True):
        self._marks, self._counts_fetching = marks, counts_fetching
        self._since: Any = None  # None while it stands
        self._parts: list[tuple[Any, Any]] = []
        self._seconds = 0.0
        self._samples = self._steps = 0
        self._is_due = True

    def resume(self) -> None:
        """Let it run: the rank works."""
        if self._since is None and self._is_due:
            self._since = self._marks.now()

    def pause(self) -> bool:
        """Let it stand: the rank waits for others, or does what other ranks do not; return True if it ran."""
        if self._since is None:
            return False
        self._parts.append((self._since, self._marks.now()))
        self._since = None
        if self._marks.every == 1:
            self._read()
        return True

    def end_shard(self, samples: int) -> None:
        """Note the end of a step's first shard, of so many samples."""
        self.pause()
        self._samples += samples if self._is_due else 0
        self._steps += 1
        self._is_due = self._steps % self._marks.every == 0 and len(self._parts) < _MOST_PARTS

    def fetched(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches; to wait for the next one is this rank's own time, where that is comparable."""
        iterator = iter(batches)
        while True:
            self.resume() if self._counts_fetching else self.pause()
            try:
                batch = next(iterator)
            except StopIteration:
                self.pause()
                return
            self.resume()
            yield batch

    def take(self) -> tuple[float, float]:
        """Return the seconds and samples since the last call. Waits for a GPU."""
        self._read()
        taken = self._seconds, float(self._samples)
        self._seconds, self._samples = 0.0, 0
        return taken

    def watch(self, model: DistributedDataParallel) -> None:
        """Let it stand while the wrapper of a model waits: for buffers of rank 0, and for the last gradients of others.

        Call it before the first step. What the wrapper calls must not be compiled: torch would compile the hooks too.
        """
        is_running = False

        def before_reduction(gradient: Tensor) -> None:
            self.pause()

        def before_wrapper(*_: object) -> None:
            nonlocal is_running
            is_running = self.pause()

        def before_module(*_: object) -> None:
            nonlocal is_running
            if is_running:
                self.resume()
            is_running = False

        module = model.module
        if module._compiled_call_impl is None and any(True for _ in module.buffers()):
            model.register_forward_pre_hook(before_wrapper)
            module.register_forward_pre_hook(before_module)
        first = next((parameter for parameter in module.parameters() if parameter.requires_grad), None)
        if first is not None:  # its gradient comes last in most models
            first.register_hook(before_reduction)

    def _read(self) -> None:
        parts, self._parts = self._parts, []
        self._seconds += sum(self._marks.seconds(start, end) for start, end in parts)
