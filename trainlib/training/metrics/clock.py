"""Training time and throughput; pauses for evaluation and checkpoints are left out of the throughput."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

END_MARGIN = 15.0  # seconds to end the ranks, and for the job to decide what comes next


@dataclass
class Pause:
    """How long a pause took, once it is over."""

    seconds: float = 0.0


class Clock:
    """The clock of a training: wall time, images per second, and how long steps and checkpoints take."""

    def __init__(self, seconds_before: float):
        self._seconds_before = seconds_before
        self.start()

    def start(self) -> None:
        """Begin to measure, before the first step."""
        self._started = time.perf_counter()
        self._images = 0
        self._steps = 0
        self._paused = 0.0
        self._last_step = self._started
        self.longest_step = 0.0  # seconds from one step to the next, with all that came between them
        self.longest_checkpoint = 0.0
        self.new_window()

    def new_window(self) -> None:
        """Begin a new window for `images_per_second`."""
        self._window_started = time.perf_counter()
        self._window_images = 0

    def count(self, images: int) -> None:
        """Count the images of a finished step."""
        self._images += images
        self._steps += 1
        self._window_images += images
        now = time.perf_counter()
        self.longest_step = max(self.longest_step, now - self._last_step)
        self._last_step = now

    @property
    def images_per_second(self) -> float:
        """Training images a second since the window began."""
        return self._window_images / max(time.perf_counter() - self._window_started, 1e-9)

    @property
    def mean_images_per_second(self) -> float:
        """Training images a second over this attempt."""
        return self._images / max(time.perf_counter() - self._started - self._paused, 1e-9)

    def mean_step_seconds(self, until: float) -> float:
        """Return how long a step of this attempt has taken, up to a moment of `time.perf_counter`."""
        return (until - self._started - self._paused) / max(self._steps, 1)

    @property
    def seconds(self) -> float:
        """Wall time since training began, over all attempts."""
        return self._seconds_before + time.perf_counter() - self._started

    def saved(self, pause: Pause) -> None:
        """Note how long a checkpoint took."""
        self.longest_checkpoint = max(self.longest_checkpoint, pause.seconds)

    def time_is_up(self, seconds_left: float) -> bool:
        """Whether another step and a checkpoint may not fit any more, should each take twice the longest so far.

        Twice the step also covers the one that runs while the ranks agree to stop.
        """
        return seconds_left < 2 * self.longest_step + 2 * self.longest_checkpoint + END_MARGIN

    @contextmanager
    def paused(self) -> Iterator[Pause]:
        """Time that does not count as training."""
        began = time.perf_counter()
        pause = Pause()
        yield pause
        pause.seconds = max(time.perf_counter() - began, 1e-9)
        self._window_started += pause.seconds
        self._paused += pause.seconds
