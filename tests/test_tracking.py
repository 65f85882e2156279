"""metrics.jsonl and TensorBoard hold the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainlib.tracking import MetricsFile


def row(step: int, split: str = "train", **more: Any) -> dict[str, Any]:
    numbers = {"loss": 1.0 / step, "accuracy": 0.5, "count": 64, "lr": 0.1, "images_per_second": 1000.0}
    return {"time": "now", "step": step, "epoch": 1, "split": split, **numbers, **more}


def test_rows_are_json_lines(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    rows = [row(1, scope="step"), row(2, "val"), row(3, loss=float("nan"))]
    for line in rows:
        file.log(line)
    file.close()
    read = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert read == [*rows[:2], rows[2] | {"loss": None}]


def test_a_resumed_run_rewrites_what_it_trains_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    for step in (1, 2, 3, 4):
        file.log(row(step))
    file.log(row(2, "test"))
    file.close()
    with path.open("a") as torn:
        torn.write('{"step": 5, "spl')
    resumed = MetricsFile(path, 2)
    resumed.log(row(3))
    resumed.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
