"""What the run tells the world: metrics.jsonl is the truth, every other tracker shows the same rows."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainlib.config import TrackingConfig
from trainlib.files import read_lines, write_atomically

Row = Mapping[str, Any]


class Tracker(Protocol):
    """Something that shows rows of metrics. `flush` makes all rows so far safe; `close` ends it."""

    def log(self, row: Row) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MetricsFile:
    """metrics.jsonl: one JSON object a line, appended. Rows past the step that a run resumes from are cut off first."""

    def __init__(self, path: Path, from_step: int):
        if path.exists():
            _keep_rows_up_to(path, from_step)
        self._file = path.open("a")

    def log(self, row: Row) -> None:
        self._file.write(json.dumps({name: _finite(value) for name, value in row.items()}) + "\n")
        self._file.flush()

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()


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
        trackers.append(TensorBoard(run / "tensorboard", from_step))
    return trackers


def log_all(trackers: Sequence[Tracker], row: Row) -> None:
    for tracker in trackers:
        tracker.log(row)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _keep_rows_up_to(path: Path, step: int) -> None:
    """Drop what will be made again: the rows of later steps, the test's, and a last line that a crash cut off."""
    rows = [row for row in read_lines(path) if row["step"] <= step and row["split"] != "test"]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
