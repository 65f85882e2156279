"""The facts of a run that the report is made from, read once from its files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeGuard

from launch.report.facts.evaluation import Evaluation, evaluation_of
from launch.report.facts.history import Attempt, Event, attempts_of, events_of, jobs_of
from launch.report.facts.series import Point, drawable
from trainlib.runs.attempt.status import Run, read_run
from trainlib.runs.files.json_records import Record
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.rows import METRICS_FILE, tested_step
from trainlib.runs.records.shapes import ROW, whole_number
from trainlib.runs.terminal.printable import printable

SPLITS = ("test", "val", "train")  # in the order in which their evaluations are shown
_MOST_EVALUATIONS = 10
_MOST_RANKS = 20
_MOST_CHECKPOINTS = 100


@dataclass(frozen=True)
class RunFacts:
    """The facts of one run.

    problems      a sentence for each file that is damaged, or is none of the run's own
    rows          the lines of metrics.jsonl that have a step, by (split, scope)
    evaluations   those of evaluation-<split>.json, the test's first; the names of unreadable files are beside them
    checkpoints   for each that can be resumed from: name, step, bytes, and the metric if it is the best one
    """

    run: Run
    name: str
    problems: list[str]
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
        return events_of([attempt for attempt in self.attempts if not attempt.is_false_start], self.last_step)

    @property
    def used_slurm(self) -> bool:
        """True if any attempt was made in a SLURM job."""
        return any(attempt.job for attempt in self.attempts)

    @property
    def last_step(self) -> int:
        """The last step of any row, 0 before the first."""
        return max((row["step"] for rows in self.rows.values() for row in rows), default=0)

    @cached_property
    def tested_step(self) -> int | None:
        """The step of the weights that were tested; None where that is not known."""
        tested = next((one for one in self.evaluations if one.split == "test"), None)
        return tested_step({"step": tested.step, "weights": tested.weights} if tested else {}, self.run.summary)

    @property
    def steps_per_epoch(self) -> int | None:
        """Steps of the first epoch, as its row has them; None before that row is written."""
        row = next((row for row in self.rows.get(("train", "epoch"), []) if row.get("epoch") == 1), None)
        return row["step"] if row else None

    def points(self, key: str, split: str, scope: str | None = None) -> list[Point]:
        """Return (step, value) of the rows of one kind that hold a number under `key` which can be drawn.

        The step of a test is that of the weights that were tested.
        """
        moved = self.tested_step if split == "test" else None
        rows = self.rows.get((split, scope), [])
        return drawable(
            [(row["step"] if moved is None else moved, row[key]) for row in rows if is_number(row.get(key))]
        )

    def slow_ranks(self) -> dict[str, tuple[int, int]]:
        """Return the ranks that were slower than the others, in words, each with its first and last step as such."""
        found: dict[str, tuple[int, int]] = {}
        for row in self.rows.get(("train", "step"), []):
            for sentence in (row.get("slow") or "").split("; ")[:_MOST_RANKS]:
                if device := sentence.partition(": ")[0]:
                    found[device] = found.get(device, (row["step"], 0))[0], row["step"]
        return dict(list(found.items())[:_MOST_RANKS])

    def seconds(self, now: datetime) -> float | None:
        """Return the duration of all attempts, or of the newest one where the run has no summary."""
        seconds = self.run.summary.get("seconds")
        return seconds if is_number(seconds) else self.run.seconds(now)

    def best_val(self, key: str = "accuracy") -> Point | None:
        """Return the step and value of the best validation: the highest accuracy, or the lowest loss."""
        return self.best(f"val/{key}", "min" if key == "loss" else "max")

    def best(self, metric: str, mode: Literal["min", "max"]) -> Point | None:
        """Return the step and value of the best evaluation, or epoch of training, by a metric such as val/macro_f1.

        Of equal ones that of the lower validation loss, then the later one, as for the best checkpoint.
        """
        split, _, key = metric.partition("/")
        losses = dict(self.points("loss", "val"))
        sign = -1 if mode == "min" else 1

        def rank(point: Point) -> tuple[float, float, float]:
            return sign * point[1], -losses.get(point[0], math.inf), point[0]

        return max(self.points(key, split, "epoch" if split == "train" else None), key=rank, default=None)

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
    files = RunFiles(directory)
    rows: dict[tuple[str | None, str | None], list[Record]] = {}
    for row in files.lines(METRICS_FILE, ROW):
        rows.setdefault((row["split"], row.get("scope")), []).append(row)
    names = sorted(files.names("evaluation-*.json"), key=_split_order)[:_MOST_EVALUATIONS]
    evaluations = {name: evaluation_of(files.record(name)) for name in names}
    config, environment, config_text = files.config(), files.record("environment.json"), files.text("config.yaml")
    best = run.summary.get("best")
    checkpoints = [_checkpoint(step, path, best, files) for step, path in newest_of(run.checkpoints)]
    return RunFacts(
        run=run,
        name=printable(directory.resolve().name),
        problems=list(dict.fromkeys([*run.problems, *files.problems])),
        config=config,
        config_text=config_text,
        environment=environment,
        rows=rows,
        attempts=attempts_of(run.attempts, jobs_of(run.jobs), running=run.status == "running"),
        evaluations=[evaluation for evaluation in evaluations.values() if evaluation],
        damaged_evaluations=[name for name, evaluation in evaluations.items() if not evaluation],
        checkpoints=checkpoints,
    )


def newest_of(checkpoints: Mapping[int, Path]) -> list[tuple[int, Path]]:
    """Return the newest checkpoints, as many as a page may list."""
    return list(checkpoints.items())[-_MOST_CHECKPOINTS:]


def _split_order(name: str) -> tuple[int, str]:
    split = name.removeprefix("evaluation-").removesuffix(".json")
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), split


def _checkpoint(step: int, path: Path, best: Any, files: RunFiles) -> Record:
    listed = files.record(f"checkpoints/{path.name}/manifest.json").get("files")
    entries = listed.values() if isinstance(listed, dict) else []
    sizes = [entry.get("size") for entry in entries if isinstance(entry, dict)]
    is_best = isinstance(best, dict) and best.get("step") == step and is_number(best.get("value"))
    return {
        "name": path.name,
        "step": step,
        "bytes": sum(size for size in sizes if whole_number(size)),
        "best": f"{best.get('metric')} {best['value']:.4f}" if is_best else None,
    }
