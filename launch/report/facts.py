"""The facts of a run that the report is made from, read once from its files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard

from launch.report.evaluation import Evaluation, read_evaluation
from launch.report.history import Attempt, Event, attempts_of, events_of, jobs_of
from launch.report.series import Point
from trainlib.runs.files import Record, read_json, read_lines, read_yaml
from trainlib.runs.status import Run, read_run

SPLITS = ("test", "val", "train")  # in the order in which their evaluations are shown


@dataclass(frozen=True)
class RunFacts:
    """The facts of one run.

    rows          the lines of metrics.jsonl that have a step, by (split, scope)
    evaluations   those of evaluation-<split>.json, the test's first; the names of unreadable files are beside them
    checkpoints   for each that can be resumed from: name, step, bytes, and the metric if it is the best one
    """

    run: Run
    name: str
    config: Record
    config_text: str
    environment: Record
    rows: dict[tuple[str | None, str | None], list[Record]]
    attempts: list[Attempt]
    evaluations: list[Evaluation]
    damaged_evaluations: list[str]
    checkpoints: list[Record]

    @property
    def events(self) -> list[Event]:
        """Resumes and ends that are marked on the curves."""
        return events_of(self.attempts, self.last_step)

    @property
    def used_slurm(self) -> bool:
        """True if any attempt was made in a SLURM job."""
        return any(attempt.job for attempt in self.attempts)

    @property
    def last_step(self) -> int:
        """The last step of any row, 0 before the first."""
        return max((row["step"] for rows in self.rows.values() for row in rows), default=0)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of the first epoch, as its row has them; None before that row is written."""
        row = next((row for row in self.rows.get(("train", "epoch"), []) if row.get("epoch") == 1), None)
        return row["step"] if row else None

    def points(self, key: str, split: str, scope: str | None = None) -> list[Point]:
        """Return (step, value) of the rows of one kind that hold a finite number under `key`."""
        return [(row["step"], row[key]) for row in self.rows.get((split, scope), []) if is_number(row.get(key))]

    def seconds(self, now: datetime) -> float | None:
        """Return the duration of all attempts, or of the newest one where the run has no summary."""
        seconds = self.run.summary.get("seconds")
        return seconds if is_number(seconds) else self.run.seconds(now)

    def best_val(self, key: str = "accuracy") -> Point | None:
        """Return the step and value of the best validation: the highest accuracy, or the lowest loss."""
        best = min if key == "loss" else max
        return best(self.points(key, "val"), key=lambda point: point[1], default=None)

    def test(self, key: str = "accuracy") -> float | None:
        """Return a test metric, from the newest row or else from the summary."""
        points = self.points(key, "test")
        value = points[-1][1] if points else (self.run.summary.get("test") or {}).get(key)
        return value if is_number(value) else None


def is_number(value: object) -> TypeGuard[int | float]:
    """Return True for a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_facts(directory: Path) -> RunFacts:
    """Read a run directory. What is missing or damaged is left out: the run may be going on, or have failed."""
    run = read_run(directory)
    rows: dict[tuple[str | None, str | None], list[Record]] = {}
    for row in read_lines(directory / "metrics.jsonl"):
        if is_number(row.get("step")):
            rows.setdefault((row.get("split"), row.get("scope")), []).append(row)
    files = sorted(directory.glob("evaluation-*.json"), key=_split_order)
    evaluations = {path.name: read_evaluation(path) for path in files}
    return RunFacts(
        run=run,
        name=directory.resolve().name.encode(errors="replace").decode(),
        config=read_yaml(directory / "config.yaml"),
        config_text=_text(directory / "config.yaml"),
        environment=read_json(directory / "environment.json"),
        rows=rows,
        attempts=attempts_of(run.attempts, jobs_of(run.jobs), running=run.status == "running"),
        evaluations=[evaluation for evaluation in evaluations.values() if evaluation],
        damaged_evaluations=[name for name, evaluation in evaluations.items() if not evaluation],
        checkpoints=[_checkpoint(step, path, run.summary.get("best")) for step, path in run.checkpoints.items()],
    )


def _split_order(path: Path) -> tuple[int, str]:
    split = path.stem.removeprefix("evaluation-")
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), split


def _checkpoint(step: int, path: Path, best: Any) -> Record:
    manifest = read_json(path / "manifest.json")
    files = manifest.get("files") or {}
    is_best = isinstance(best, dict) and best.get("step") == step and is_number(best.get("value"))
    return {
        "name": path.name,
        "step": step,
        "bytes": sum(file.get("size", 0) for file in files.values()),
        "best": f"{best.get('metric')} {best['value']:.4f}" if is_best else None,
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
