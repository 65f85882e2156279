"""The rows of metrics.jsonl and health.jsonl, from which every tracker shows a run."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainlib.parts import ROW_KEYS
from trainlib.platform.regular_files import open_regular
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.files.json_records import scan_lines, to_json
from trainlib.runs.records.shapes import ROW

logger = logging.getLogger("trainlib.runs")

Row = Mapping[str, Any]

METRICS_FILE = "metrics.jsonl"
BY_THE_CLOCK = ("time", "images_per_second", "slow")  # what rows of two equal runs may have that differs
_EPOCHS = (("train", "epoch"), ("val", None))  # split and scope of the rows that every epoch has
_NAMED_AT_MOST = 5

# Beside loss and accuracy; the last three are of samples with several labels.
EVALUATION_NUMBERS = ("top5", "macro_f1", "balanced_accuracy", "map", "micro_f1", "subset_accuracy")
HEALTH_NUMBERS = ("gradient_norm", "weight_norm", "update_ratio")


class MetricsFile:
    """An open file of rows, one JSON object a line; opening it removes the rows past the step to resume from.

    num_rows   how many there must be then; None where that is not known

    Rows that cannot be written, as on a full disk, are kept and tried again with the next one. `flush` raises OSError
    as long as there are some, so that no checkpoint is newer than the rows on disk. `flush` may be called from another
    thread, which writes checkpoints in the background.
    """

    def __init__(self, path: Path, from_step: int, num_rows: int | None = None):
        self._path = path
        if path.exists():
            _keep_rows_up_to(path, from_step, num_rows)
        self._descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT)
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
        *EVALUATION_NUMBERS,
        "images_per_second",
        *(name for name in ("lr", "grad_norm") if row["split"] == "train"),
        *own_numbers(row),
    ]
    named = {f"{row['split']}/{name}{suffix}": row.get(name) for name in names}
    return {name: value for name, value in named.items() if value is not None and math.isfinite(value)}


def own_numbers(row: Row) -> list[str]:
    """Return the names of the metrics of the user's own in a row: numbers that no other row has."""
    return [name for name, value in row.items() if name not in ROW_KEYS and isinstance(value, int | float)]


def health_scalars(row: Row) -> dict[str, float]:
    """Return the numbers of a row of health.jsonl by names for charts: `gradient_norm/<parameter>` and so on."""
    return {f"{name}/{key}": value for name in HEALTH_NUMBERS for key, value in row[name].items() if value is not None}


def tested_step(evaluation: Row, summary: Row) -> int | None:
    """Return the step of the weights that the test row is about, which is its own step only where these are the last.

    evaluation   evaluation-test.json, empty where there is none; one of a single checkpoint tells nothing of the run
    summary      summary.json

    None where neither tells.
    """
    if evaluation.get("weights") in ("best", "last"):
        return evaluation.get("step")
    best = summary.get("best") if summary.get("test") else None
    return best.get("step") if best else None


def lost_rows(rows: Sequence[Row]) -> str | None:
    """Return a sentence on rows that must have been there between these, the whole of metrics.jsonl; None if none.

    Every epoch has one training row, and one of the validation where there is any. Rows of steps are evenly spaced as
    long as `tracking.log_every` stays the same: a gap that is wider than those on both sides has lost rows.
    """
    epochs = {kind: {row.get("epoch") for row in rows if (row["split"], row.get("scope")) == kind} for kind in _EPOCHS}
    newest = max((row["epoch"] for row in rows if row.get("epoch") is not None), default=1)
    for (split, scope), found in epochs.items():
        missing = sorted(set(range(1, newest)) - found) if found or scope else []
        if missing:
            shown = ", ".join(map(str, missing[:_NAMED_AT_MOST])) + (" ..." if len(missing) > _NAMED_AT_MOST else "")
            return f"the {split} rows of {len(missing)} epochs are lost ({shown})"
    steps = sorted({row["step"] for row in rows if row.get("scope") == "step"})
    gaps = [after - before for before, after in pairwise(steps)]
    for index in range(1, len(gaps) - 1):
        if gaps[index] > max(gaps[index - 1], gaps[index + 1]):
            return f"rows of steps are lost between step {steps[index]} and {steps[index + 1]}"
    return None


def miscounted_rows(rows: Sequence[Row], step: int, num_rows: int | None) -> str | None:
    """Return a sentence where there are not as many rows as the checkpoint of a step came after; None where there are.

    rows       the whole of metrics.jsonl
    num_rows   of the checkpoint; None where that is not known
    """
    there = sum(row["step"] <= step and row["split"] != "test" for row in rows)
    if num_rows is None or there == num_rows:
        return None
    return f"{num_rows} rows were written up to step {step}, and {there} are there"


def _keep_rows_up_to(path: Path, step: int, num_rows: int | None) -> None:
    """Rewrite a file without the rows that will be made again, those of later steps and the test's, and torn lines.

    Damage is told: a damaged line was a row once. A last line without its end is none: a kill has cut it off.
    """
    found = scan_lines(path, limit=sys.maxsize)
    rows = [
        row
        for row in found.records
        if isinstance(at := row.get("step"), int) and at <= step and row.get("split") != "test"
    ]
    good = [row for row in rows if ROW(row) is None]
    lost = lost_rows(good) or miscounted_rows(good, step, num_rows) if path.name == METRICS_FILE else None
    damage = [f"damaged: {problem}" for problem in found.problems] + ([lost] if lost else [])
    if damage:
        logger.warning("%s: %s; the run goes on without these rows", path, "; ".join(damage))
    write_atomically(path, "".join(to_json(row) + "\n" for row in rows))
