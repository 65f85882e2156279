"""Runs as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from launch.runs import Record, Run, time_of

_COLUMNS = ("NAME", "STATUS", "STEP", "EPOCH", "ACCURACY", "STARTED", "SECONDS")
_RIGHT_ALIGNED = {"STEP", "EPOCH", "SECONDS"}


def runs_table(runs: Sequence[Run], now: datetime) -> str:
    """One line for each run; the accuracy is the test's where there is one, the newest validation's otherwise."""
    rows = [_COLUMNS, *(_row(run, now) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_aligned(row, widths) for row in rows)


def run_details(run: Run, now: datetime) -> str:
    """All that the files of a run tell, some lines long."""
    facts = {
        "run": run.name,
        "status": _explain(run),
        "progress": _progress(run.newest_metrics, run.planned),
        "train": _metrics(run.last.get(("train", "epoch")) or run.last.get(("train", "step"))),
        "val": _metrics(run.last.get(("val", None))),
        "test": _metrics(run.last.get(("test", None)) or run.summary.get("test")),
        "last error": _last_error(run),
        "checkpoints": ", ".join(path.name for path in run.checkpoints),
        "seconds": _seconds(run, now),
        "directory": str(run.directory),
    }
    lines = [f"{label + ':':<13}{value}" for label, value in facts.items() if value]
    attempts = [f"  {_attempt(record)}" for record in run.attempts]
    return "\n".join([*lines, *(["attempts:"] if attempts else []), *attempts])


def _row(run: Run, now: datetime) -> tuple[str, ...]:
    newest = run.newest_metrics
    return (
        run.name,
        run.status,
        str(newest.get("step", "")),
        str(newest.get("epoch", "")),
        _accuracy(run),
        _local(run.started),
        _seconds(run, now),
    )


def _accuracy(run: Run) -> str:
    for split, record in (("test", run.last.get(("test", None))), ("val", run.last.get(("val", None)))):
        if record and isinstance(record.get("accuracy"), int | float):
            return f"{split} {record['accuracy']:.4f}"
    return ""


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.rjust(width) if column in _RIGHT_ALIGNED else cell.ljust(width)
        for column, cell, width in zip(_COLUMNS, cells, widths, strict=True)
    ]
    return "  ".join(padded).rstrip()


def _explain(run: Run) -> str:
    what_next = {
        "stopped": "; start it again to continue",
        "interrupted": ": it ended without a word; start it again to continue",
        "running": f", process {(run.last_start or {}).get('pid')} on {(run.last_start or {}).get('host')}",
    }
    return run.status + what_next.get(run.status, "")


def _progress(newest: Record, planned: Record) -> str:
    """How far the run is. A run is so many epochs or so many steps long, so only one of the two has a total."""
    if not newest:
        return ""
    totals = {unit: f" of {planned[f'{unit}s']}" if planned.get(f"{unit}s") else "" for unit in ("step", "epoch")}
    return ", ".join(f"{unit} {newest.get(unit)}{total}" for unit, total in totals.items())


def _metrics(record: Record | None) -> str:
    """Loss and accuracy of one line of metrics.jsonl."""
    if not record:
        return ""
    texts = [f"{key} {_number(record[key])}" for key in ("loss", "accuracy") if record.get(key) is not None]
    if "step" in record:
        texts.append(f"at step {record['step']}")
    if record.get("count") is not None:
        texts.append(f"over {record['count']} samples")
    return ", ".join(texts)


def _last_error(run: Run) -> str:
    reasons = [record["reason"] for record in run.attempts if record.get("status") == "failed" and record.get("reason")]
    return str(reasons[-1]) if reasons else ""


def _attempt(record: Record) -> str:
    """One line of attempts.jsonl in words."""
    head = f"{record.get('attempt')}  {_local(time_of(record))}  "
    if record.get("event") == "start":
        job = record.get("slurm_job_id")
        place = (
            f"{record.get('host')}, SLURM job {job}" if job else f"{record.get('host')}, process {record.get('pid')}"
        )
        return f"{head}started at step {record.get('from_step')}, {record.get('world_size')} ranks, {place}"
    reason = f": {record['reason']}" if record.get("reason") else ""
    return f"{head}{record.get('status')} at step {record.get('step')}{reason}"


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else str(value)


def _seconds(run: Run, now: datetime) -> str:
    seconds = run.seconds(now)
    return "" if seconds is None else f"{seconds:.0f}"


def _local(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
