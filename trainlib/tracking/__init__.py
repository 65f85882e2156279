"""What the run tells the world: metrics.jsonl is the truth, every other tracker shows the same rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from trainlib.config import TrackingConfig
from trainlib.tracking.rows import MetricsFile, Row, scalars
from trainlib.tracking.tensorboard import TensorBoard

__all__ = ["Forgiving", "MetricsFile", "Row", "TensorBoard", "Tracker", "log_all", "open_trackers", "scalars"]

logger = logging.getLogger("trainlib.tracking")


class Tracker(Protocol):
    """Something that shows rows of metrics. `flush` makes all rows so far safe; `close` ends it."""

    def log(self, row: Row) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def open_trackers(config: TrackingConfig, run: Path, from_step: int) -> list[Tracker]:
    """The trackers that the configuration asks for; metrics.jsonl is always one of them."""
    trackers: list[Tracker] = [MetricsFile(run / "metrics.jsonl", from_step)]
    if config.tensorboard:
        trackers.append(Forgiving(TensorBoard(run / "tensorboard", from_step)))
    return trackers


class Forgiving:
    """A tracker whose failure harms nothing but itself: it warns once, and shows nothing from then on."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._broken = False

    def log(self, row: Row) -> None:
        self._attempt(lambda: self._tracker.log(row))

    def flush(self) -> None:
        self._attempt(self._tracker.flush)

    def close(self) -> None:
        self._attempt(self._tracker.close)

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a foreign library raises
            self._broken = True
            logger.warning("%s stopped working (%s); training goes on without it", type(self._tracker).__name__, error)


def log_all(trackers: Sequence[Tracker], row: Row) -> None:
    for tracker in trackers:
        tracker.log(row)
