"""Rows of numbers in files: metrics.jsonl is the truth of a run, and every other tracker shows what is in there."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainlib.files import read_lines, to_json, write_atomically

logger = logging.getLogger("trainlib.tracking")

Row = Mapping[str, Any]


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


def scalars(row: Row) -> dict[str, float]:
    """A row's numbers under the names that chart tools group by: `train/loss_step`, `train/loss`, `val/loss`, `lr`."""
    suffix = "_step" if row.get("scope") == "step" else ""
    named = {f"{row['split']}/{name}{suffix}": row[name] for name in ("loss", "accuracy")}
    if row["split"] == "train":
        named |= {"lr": row["lr"], "images_per_second": row["images_per_second"]}
    return {name: value for name, value in named.items() if value is not None}


def _keep_rows_up_to(path: Path, step: int) -> None:
    """Drop what will be made again: the rows of later steps, the test's, and a last line that a crash cut off."""
    rows = [
        row
        for row in read_lines(path)
        if isinstance(at := row.get("step"), int) and at <= step and row.get("split") != "test"
    ]
    write_atomically(path, "".join(to_json(row) + "\n" for row in rows))
