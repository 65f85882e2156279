"""What the run tells the world: metrics.jsonl is the truth, every other tracker shows the same rows."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from trainlib.config import TrackingConfig
from trainlib.files import read_lines, to_json, write_atomically

logger = logging.getLogger("trainlib.tracking")

Row = Mapping[str, Any]


class Tracker(Protocol):
    """Something that shows rows of metrics. `flush` makes all rows so far safe; `close` ends it."""

    def log(self, row: Row) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl: one JSON object a line, appended. Rows past the step that a run resumes from are cut off first.

    Rows that a full disk does not take are kept and tried again with the next one; `flush` raises OSError as long as
    there are some, so that no checkpoint is taken for newer than the rows that lead to it. `flush` may be called from
    another thread, which writes checkpoints in the background.
    """

    def __init__(self, path: Path, from_step: int):
        if path.exists():
            _keep_rows_up_to(path, from_step)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
        self._size = os.fstat(self._descriptor).st_size
        self._unwritten = b""
        self._lock = threading.Lock()

    def log(self, row: Row) -> None:
        with self._lock:
            self._unwritten += to_json(row).encode() + b"\n"
            with suppress(OSError):
                self._write()

    def flush(self) -> None:
        with self._lock:
            self._write()
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Rows that still cannot be written are lost, with a warning: how the run ended must not be hidden by it."""
        try:
            self.flush()
        except OSError as error:
            logger.warning("the last rows of metrics.jsonl may be lost (%s)", error)
        finally:
            os.close(self._descriptor)

    def _write(self) -> None:
        """Write at the end of what is known to be written: half a line from a failed write is written over."""
        while self._unwritten:
            written = os.pwrite(self._descriptor, self._unwritten, self._size)
            self._size += written
            self._unwritten = self._unwritten[written:]


class TensorBoard:
    """The same rows as scalars `split/loss`, `split/accuracy`, `lr`, `images_per_second`, at the row's step."""

    def __init__(self, directory: Path, from_step: int):
        from torch.utils.tensorboard import SummaryWriter

        purge = from_step + 1 if directory.exists() else None  # rows past the resumed step do not count
        self._writer: Any = SummaryWriter(str(directory), purge_step=purge)

    def log(self, row: Row) -> None:
        for tag, value in scalars(row).items():
            self._writer.add_scalar(tag, value, row["step"])

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def scalars(row: Row) -> dict[str, float]:
    """A row's numbers under the names that chart tools group by: `train/loss_step`, `train/loss`, `val/loss`, `lr`."""
    suffix = "_step" if row.get("scope") == "step" else ""
    named = {f"{row['split']}/{name}{suffix}": row[name] for name in ("loss", "accuracy")}
    if row["split"] == "train":
        named |= {"lr": row["lr"], "images_per_second": row["images_per_second"]}
    return {name: value for name, value in named.items() if value is not None}


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


def _keep_rows_up_to(path: Path, step: int) -> None:
    """Drop what will be made again: the rows of later steps, the test's, and a last line that a crash cut off."""
    rows = [
        row
        for row in read_lines(path)
        if isinstance(at := row.get("step"), int) and at <= step and row.get("split") != "test"
    ]
    write_atomically(path, "".join(to_json(row) + "\n" for row in rows))
