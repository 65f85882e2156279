"""Run directories such as a training leaves them, made of a few lines each, for the report to be made from."""

from __future__ import annotations

import base64
import io
import json
import math
import random
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

START = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
CLASSES = ["cat", "dog", "ship"]
STEPS_PER_EPOCH = 20


def moment(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def start(attempt: int, at: float, **more: Any) -> dict[str, Any]:
    record = {"event": "start", "attempt": attempt, "time": moment(at), "host": "node1", "pid": 17}
    return record | {"world_size": 2, "from_step": 0, "slurm_job_id": None} | more


def end(attempt: int, at: float, status: str, step: int, reason: str | None = None) -> dict[str, Any]:
    times = {"event": "end", "attempt": attempt, "time": moment(at)}
    return times | {"status": status, "step": step, "reason": reason}


def training_rows(steps: int, *, every: int = 1, level: float = 1.0, tested: bool = True) -> list[dict[str, Any]]:
    """A loss that falls, with noise; a row of an epoch and a validation every STEPS_PER_EPOCH steps, and a test."""
    noise = random.Random(1)
    rows = []

    def add(step: int, split: str, loss: float, **more: Any) -> None:
        epoch = -(-step // STEPS_PER_EPOCH)
        figures = {
            "loss": loss,
            "accuracy": math.exp(-loss),
            "count": 64,
            "lr": 0.1 / epoch,
            "images_per_second": 1000.0,
        }
        rows.append({"time": moment(step), "step": step, "epoch": epoch, "split": split} | more | figures)

    for step in range(every, steps + 1, every):
        loss = level * (0.2 + 2 / (1 + step / 30))
        add(step, "train", loss * noise.uniform(0.8, 1.2), scope="step")
        if step % STEPS_PER_EPOCH == 0:
            add(step, "train", loss, scope="epoch")
            add(step, "val", loss * 1.1)
    if tested:
        add(steps, "test", level * 0.3)
    return rows


def picture(colour: tuple[int, int, int]) -> str:
    """A small PNG, in base64."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def evaluation(confusion: list[list[int]], classes: list[str], split: str = "test") -> dict[str, Any]:
    """The evaluation that belongs to this confusion matrix."""
    total, columns = sum(map(sum, confusion)), [sum(column) for column in zip(*confusion, strict=True)]
    per_class, mistakes = [], []
    for label, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        right = row[label]
        figures = {"precision": right / max(columns[label], 1), "recall": right / max(sum(row), 1)}
        per_class.append({"name": name, "count": sum(row)} | figures | {"f1": 2 * right / (sum(row) + columns[label])})
        if label:
            wrong = {"index": label, "label": label, "predicted": 0, "probability": 0.99 - label / 100}
            told = {"loss": 5.0 - label / 100, "file": f"photos/test/{name}/{label}.jpg"}
            mistakes.append(wrong | told | {"png": picture((label * 40 % 256, 90, 200))})
    accuracy = sum(row[label] for label, row in enumerate(confusion)) / total
    figures = {"count": total, "loss": 0.3, "accuracy": accuracy, "top5_accuracy": 1.0, "calibration_error": 0.05}
    tables = {"classes": classes, "confusion": confusion, "per_class": per_class, "mistakes": mistakes}
    return {"split": split, "step": 60, "weights": "best"} | figures | tables


def write_run(
    directory: Path,
    *,
    attempts: Iterable[Mapping[str, Any]] = (),
    rows: Iterable[Mapping[str, Any]] = (),
    jobs: Iterable[Mapping[str, Any]] = (),
    config: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    evaluations: Iterable[Mapping[str, Any]] = (),
) -> Path:
    """A run directory with these files in it."""
    (directory / "checkpoints" / "step-00000060").mkdir(parents=True)
    (directory / "lock").touch()
    files = {"model.safetensors": {"size": 583_136}}
    (directory / "checkpoints" / "step-00000060" / "manifest.json").write_text(json.dumps({"files": files}))
    for name, lines in (("attempts", attempts), ("metrics", rows), ("jobs", jobs)):
        if lines:
            (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = {"name": directory.name, "model": {"name": "cifar10_cnn"}, "data": {"name": "synthetic"}} | dict(
        config or {}
    )
    (directory / "config.yaml").write_text(yaml.safe_dump(whole))
    (directory / "environment.json").write_text(json.dumps({"host": "node1", "command": ["launch", "run", "x"]}))
    if summary is not None:
        (directory / "summary.json").write_text(json.dumps(summary))
    for each in evaluations:
        (directory / f"evaluation-{each['split']}.json").write_text(json.dumps(each))
    return directory


def resumed_run(directory: Path, *, classes: list[str] = CLASSES, level: float = 1.0, **config: Any) -> Path:
    """A complete run that was killed once and stopped once."""
    attempts = [
        start(1, 0),
        start(2, 50, from_step=40),
        end(2, 90, "stopped", 70, "SIGTERM"),
        start(3, 100, from_step=70),
        end(3, 140, "completed", 100),
    ]
    rows = training_rows(100, level=level)
    confusion = [
        [30 if row == column else 20 * (column == 2) + abs(row - column) for column in range(len(classes))]
        for row in range(len(classes))
    ]
    return write_run(
        directory,
        attempts=attempts,
        rows=rows,
        config=config,
        summary={"status": "completed", "seconds": 120.0, "best": {"metric": "val/accuracy", "value": 0.5, "step": 60}},
        evaluations=[evaluation(confusion, classes)],
    )
