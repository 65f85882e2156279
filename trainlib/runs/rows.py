"""The rows of metrics.jsonl and health.jsonl, from which every tracker shows a run."""

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

logger = logging.getLogger("trainlib.runs")

Row = Mapping[str, Any]

HEALTH_NUMBERS = ("gradient_norm", "weight_norm", "update_ratio")


class MetricsFile:
    """An open file of rows, one JSON object a line; opening it removes the rows past the step to resume from.

    Rows that cannot be written, as on a full disk, are kept and tried again with the next one. `flush` raises OSError
    as long as there are some, so that no checkpoint is newer than the rows on disk. `flush` may be called from another
    thread, which writes checkpoints in the background.
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
        """Append a row."""
        with self._lock:
            self._unwritten += to_json(row).encode() + b"\n"
            with suppress(OSError):
                self._write()

    def flush(self) -> None:
        """Write all rows through to the disk. Raises OSError where one cannot be written."""
        with self._lock:
            self._write()
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Write what is left and close the file. Rows that are lost are a warning: an error would hide another one."""
        try:
            self.flush()
        except OSError as error:
            logger.warning("the last rows of %s may be lost (%s)", self._path.name, error)
        finally:
            os.close(self._descriptor)

    def _write(self) -> None:
        """Write after the last whole row, over half a line that a failed write may have left."""
        while self._unwritten:
            written = os.pwrite(self._descriptor, self._unwritten, self._size)
            self._size += written
            self._unwritten = self._unwritten[written:]


def scalars(row: Row) -> dict[str, float]:
    """Return the finite numbers of a row by names for charts: `train/loss_step`, `train/loss`, `val/accuracy`.

    The names tell the split and the scope, so that no other row of the same step has one of them.
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
    """Return the numbers of a row of health.jsonl by names for charts: `gradient_norm/<parameter>` and so on."""
    return {f"{name}/{key}": value for name in HEALTH_NUMBERS for key, value in row[name].items() if value is not None}


def _keep_rows_up_to(path: Path, step: int) -> None:
    """Rewrite a file without the rows that will be made again, those of later steps and the test's, and torn lines."""
    rows = [
        row
        for row in read_lines(path, strict=True)
        if isinstance(at := row.get("step"), int) and at <= step and row.get("split") != "test"
    ]
    write_atomically(path, "".join(to_json(row) + "\n" for row in rows))
