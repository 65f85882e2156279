"""Rows of numbers in files: metrics.jsonl is the truth of a run, and every other tracker shows what is in there."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainlib.runs.files import read_lines, to_json, write_atomically

logger = logging.getLogger("trainlib.training.tracking")

Row = Mapping[str, Any]

HEALTH_NUMBERS = ("gradient_norm", "weight_norm", "update_ratio")


class MetricsFile:
    """metrics.jsonl or its like: one JSON object a line, appended. Rows past the step that a run resumes from are cut.

    Rows that a full disk does not take are kept and tried again with the next one; `flush` raises OSError as long as
    there are some, so that no checkpoint is taken for newer than the rows that lead to it. `flush` may be called from
    another thread, which writes checkpoints in the background.
    """

    def __init__(self, path: Path, from_step: int):
        self._path = path
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
            logger.warning("the last rows of %s may be lost (%s)", self._path.name, error)
        finally:
            os.close(self._descriptor)

    def _write(self) -> None:
        """Write at the end of what is known to be written: half a line from a failed write is written over."""
        while self._unwritten:
            written = os.pwrite(self._descriptor, self._unwritten, self._size)
            self._size += written
            self._unwritten = self._unwritten[written:]


def scalars(row: Row) -> dict[str, float]:
    """A row's numbers under names of their own: `train/loss_step`, `train/lr_step`, `train/loss`, `val/accuracy`.

    The names tell the split and the scope, so that no other row of the same step has one of them. Numbers that are not
    finite, which JSON writes as null, have no point in a chart.
    """
    suffix = "_step" if row.get("scope") == "step" else ""
    names = [
        "loss",
        "accuracy",
        "images_per_second",
        *(name for name in ("lr", "grad_norm") if row["split"] == "train"),
    ]
    named = {f"{row['split']}/{name}{suffix}": row.get(name) for name in names}
    return {name: value for name, value in named.items() if value is not None and math.isfinite(value)}


def health_scalars(row: Row) -> dict[str, float]:
    """The numbers of a row of health.jsonl: `gradient_norm/<parameter>`, `weight_norm/...`, `update_ratio/...`."""
    return {f"{name}/{key}": value for name in HEALTH_NUMBERS for key, value in row[name].items() if value is not None}


def _keep_rows_up_to(path: Path, step: int) -> None:
    """Drop what will be made again: the rows of later steps, the test's, and a last line that a crash cut off."""
    rows = [
        row
        for row in read_lines(path)
        if isinstance(at := row.get("step"), int) and at <= step and row.get("split") != "test"
    ]
    write_atomically(path, "".join(to_json(row) + "\n" for row in rows))
