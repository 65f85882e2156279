"""The types that records in a run directory have: what reads them may rely on these, and a damaged one does not fit.

Names that are not listed may hold anything: another version of this software may have written them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeGuard

from trainlib.runs.files.json_records import Fits, Record

Check = Callable[[Any], bool]

_MOST_CHARACTERS = 100_000
_JOB_ID = re.compile(r"[0-9]{1,19}")


def fitting(checks: Mapping[str, Check], required: Collection[str] = ()) -> Fits:
    """Return what tells of a record which value is missing or of another type; null counts as missing."""

    def wrong(record: Record) -> str | None:
        for name in required:
            if record.get(name) is None:
                return f"it has no {name}"
        for name, check in checks.items():
            if (value := record.get(name)) is not None and not check(value):
                return f"its {name} is no {check.__name__.strip('_').replace('_', ' ')}"
        return None

    return wrong


def whole_number(value: Any) -> bool:
    """Return True for a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def number(value: Any) -> bool:
    """Return True for a number; `json_records` reads none that is not finite."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def numbers(value: Any) -> TypeGuard[list[float]]:
    """Return True for a list of numbers."""
    return isinstance(value, list) and all(map(number, value))


def text(value: Any) -> bool:
    """Return True for a text of a length that somebody may read."""
    return isinstance(value, str) and len(value) <= _MOST_CHARACTERS


def texts(value: Any) -> bool:
    """Return True for a list of texts."""
    return isinstance(value, list) and all(map(text, value))


def job_id(value: Any) -> bool:
    """Return True for the number of a job as text: it becomes an argument of SLURM's commands."""
    return isinstance(value, str) and _JOB_ID.fullmatch(value) is not None


def status(value: Any) -> bool:
    """Return True for a state in which an attempt can end."""
    return value in ("completed", "stopped", "failed")


def truth_value(value: Any) -> bool:
    """Return True for true and false."""
    return isinstance(value, bool)


def text_or_number(value: Any) -> bool:
    """Return True for a text or a number."""
    return text(value) or number(value)


def _result(value: Any) -> bool:
    return isinstance(value, dict) and fitting(_RESULT)(value) is None


def _loads(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(load, dict) and _LOAD(load) is None for load in value)


_LOAD = fitting({"index": text, "percent": number, "memory_used": number, "memory_total": number}, required=("index",))

_METRICS: dict[str, Check] = {
    "loss": number,
    "accuracy": number,
    "top5": number,
    "macro_f1": number,
    "balanced_accuracy": number,
    "map": number,
    "micro_f1": number,
    "subset_accuracy": number,
    "count": whole_number,
}

_RESULT: dict[str, Check] = {
    **_METRICS,
    "step": whole_number,
    "value": number,
    "metric": text,
}

ROW = fitting(
    {
        "time": text,
        "step": whole_number,
        "epoch": whole_number,
        "split": text,
        "scope": text,
        **_METRICS,
        "lr": number,
        "images_per_second": number,
        "grad_norm": number,
        "slow": text,
    },
    required=("step", "split"),
)
ATTEMPT = fitting(
    {
        "event": text,
        "attempt": whole_number,
        "time": text,
        "host": text,
        "pid": whole_number,
        "world_size": whole_number,
        "from_step": whole_number,
        "slurm_job_id": text,
        "slurm_restart_count": text_or_number,
        "restart": whole_number,
        "cause": text,
        "status": status,
        "step": whole_number,
        "code": text,
        "reason": text,
    },
    required=("event",),
)
JOB = fitting(
    {
        "event": text,
        "job_id": job_id,
        "array_task": whole_number,
        "restart": whole_number,
        "time": text,
        "nodes": texts,
        "end_time": text,
        "cause": text,
        "signal": text,
        "reason": text,
        "step": whole_number,
        "rank": whole_number,
        "host": text,
        "exit_code": number,
        "log": text,
        "error": text,
        "requeued": truth_value,
        "excluded": texts,
    },
    required=("event", "job_id"),
)
_MANIFEST = {"format": whole_number, "step": whole_number, "best_step": whole_number, "num_rows": whole_number}
MANIFEST, WHOLE_MANIFEST = fitting(_MANIFEST), fitting(_MANIFEST, required=("format", "step"))  # of a checkpoint
SUMMARY = fitting(
    {
        "status": status,
        "step": whole_number,
        "epoch": whole_number,
        "best": _result,
        "test": _result,
        "weights_sha256": text,
        "world_size": whole_number,
        "images_per_second": number,
        "seconds": number,
    }
)
FAILURE = fitting(
    {
        "time": text,
        "rank": whole_number,
        "host": text,
        "exit_code": number,
        "signal": text,
        "log": text,
        "error": text,
    },
    required=("time", "rank", "host", "exit_code", "log"),
)
PULSE = fitting(
    {
        "time": text,
        "phase": text,
        "decoded": whole_number,
        "pictures": whole_number,
        "step": whole_number,
        "total": whole_number,
        "epoch": whole_number,
        "epochs": whole_number,
        "loss": number,
        "images_per_second": number,
        "seconds_left": number,
        "gpus": _loads,
        "slow": text,
    },
    required=("time", "phase"),
)
