"""Training time and throughput; pauses for evaluation and checkpoints are left out of the throughput."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Pause:
    """How long a pause took, once it is over."""

    seconds: float = 0.0


class Clock:
    def __init__(self, seconds_before: float):
        self._seconds_before = seconds_before
        self.start()

    def start(self) -> None:
        self._started = time.perf_counter()
        self._images = 0
        self._paused = 0.0
        self.new_window()

    def new_window(self) -> None:
        self._window_started = time.perf_counter()
        self._window_images = 0

    def count(self, images: int) -> None:
        self._images += images
        self._window_images += images

    @property
    def images_per_second(self) -> float:
        """Training images a second since the window began."""
        return self._window_images / max(time.perf_counter() - self._window_started, 1e-9)

    @property
    def mean_images_per_second(self) -> float:
        """Training images a second over this attempt."""
        return self._images / max(time.perf_counter() - self._started - self._paused, 1e-9)

    @property
    def seconds(self) -> float:
        """Wall time since training began, over all attempts."""
        return self._seconds_before + time.perf_counter() - self._started

    @contextmanager
    def paused(self) -> Iterator[Pause]:
        """Time that does not count as training."""
        began = time.perf_counter()
        pause = Pause()
        yield pause
        pause.seconds = max(time.perf_counter() - began, 1e-9)
        self._window_started += pause.seconds
        self._paused += pause.seconds
