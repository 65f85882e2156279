"""The trackers of a run: metrics.jsonl, and others that show the same rows (TensorBoard, W&B)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainlib.config import TrackingConfig
from trainlib.runs.files.json_records import read_lines
from trainlib.runs.records.rows import MetricsFile, Row, scalars
from trainlib.training.hooks import Tracker
from trainlib.training.hooks.tracking.others.process import TrackerJob, TrackerProcess
from trainlib.training.hooks.tracking.tensorboard import TensorBoard
from trainlib.training.hooks.tracking.wandb.process import WandbJob, WandbProcess

__all__ = [
    "BestEffortTracker",
    "MetricsFile",
    "Row",
    "TensorBoard",
    "Tracker",
    "Trackers",
    "open_trackers",
    "scalars",
]

logger = logging.getLogger("trainlib.training.hooks.tracking")


@dataclass(frozen=True)
class Trackers:
    """What shows the rows of metrics.jsonl, and what those of health.jsonl, if there are to be any."""

    metrics: list[Tracker]
    health: list[Tracker]

    def close(self) -> None:
        """Close every tracker once, those of both lists too."""
        for tracker in {id(tracker): tracker for tracker in (*self.health, *self.metrics)}.values():
            tracker.close()


def open_trackers(
    config: TrackingConfig, run: Path, from_step: int, num_rows: int | None, values: Mapping[str, Any]
) -> Trackers:
    """Return the trackers that the configuration asks for; metrics.jsonl is always one of them.

    num_rows   how many rows of metrics.jsonl the checkpoint of `from_step` came after; None where that is not known
    values     the configuration and the environment, for W&B
    """
    trackers = Trackers([MetricsFile(run / "metrics.jsonl", from_step, num_rows)], [])
    if config.health is not None:
        trackers.health.append(BestEffortTracker("health.jsonl", lambda: MetricsFile(run / "health.jsonl", from_step)))
    if config.tensorboard:
        board = BestEffortTracker("TensorBoard", lambda: TensorBoard(run))
        trackers.metrics.append(board)
        trackers.health.append(board)
    for name in config.trackers:
        other = TrackerJob(name, str(run.absolute()), config.wandb.project, values, _count_rows(run))
        trackers.metrics.append(BestEffortTracker(name, partial(TrackerProcess, other)))
    job = WandbJob.of(run, config.wandb, values)
    if job.mode != "disabled":
        trackers.metrics.append(BestEffortTracker("W&B", lambda: WandbProcess(job)))
    return trackers


def _count_rows(run: Path) -> int:
    """Return the number of rows in metrics.jsonl, which has just been cut at the checkpoint."""
    return len(read_lines(run / "metrics.jsonl"))


class BestEffortTracker:
    """A tracker whose failure harms nothing but itself: it warns once, and shows nothing from then on."""

    def __init__(self, name: str, opened: Callable[[], Tracker]):
        self._name = name
        self._tracker: Tracker | None = None
        with self._forgiving():
            self._tracker = opened()

    def log(self, row: Row) -> None:
        """Pass the row on."""
        with self._forgiving():
            if self._tracker is not None:
                self._tracker.log(row)

    def flush(self) -> None:
        """Flush the tracker."""
        with self._forgiving():
            if self._tracker is not None:
                self._tracker.flush()

    def close(self) -> None:
        """Close the tracker."""
        with self._forgiving():
            if self._tracker is not None:
                self._tracker.close()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except ModuleNotFoundError as error:
            self._tracker = None
            message = "%s: the package is not installed (`pip install %s`); training goes on without it"
            logger.warning(message, self._name, error.name)
        except Exception as error:  # noqa: BLE001 - whatever a foreign library raises
            self._tracker = None
            logger.warning("%s stopped working (%s); training goes on without it", self._name, error)
