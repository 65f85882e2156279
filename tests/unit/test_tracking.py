"""metrics.jsonl and TensorBoard hold the same rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainlib.runs.files.json_records import to_json
from trainlib.training.hooks.tracking import MetricsFile, TensorBoard
from trainlib.training.hooks.tracking.wandb.follower import Follower
from trainlib.training.hooks.tracking.wandb.process import WandbJob


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


class Logged:
    """Stands in for a W&B run."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def log(self, row: dict[str, Any], values: dict[str, float]) -> None:
        self.steps.append(row["step"])


@pytest.mark.parametrize(("mode", "before", "after"), [("offline", [], [1, 2, 4]), ("online", [1, 2, 4, 5], [])])
def test_offline_a_row_waits_for_its_checkpoint(tmp_path: Path, mode: Any, before: list[int], after: list[int]) -> None:
    """Also for one of a later step; half a line waits for its other half."""
    run = Logged()
    job = WandbJob(str(tmp_path), "run", mode, "project", None, None, artifacts=False, pid=1, config={})
    follower = Follower(job, run)  # type: ignore[arg-type]
    lines = [to_json(row(step)) for step in (1, 2, 4, 5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 6, "spl')
    follower.follow()
    assert run.steps == before
    (tmp_path / "checkpoints/step-00000004").mkdir(parents=True)
    follower.follow()
    assert run.steps == before + after


def test_tensorboard_shows_training_and_validation_in_one_chart_and_compares_configurations(tmp_path: Path) -> None:
    """Read by TensorBoard's own plugins' formats; a resumed run has each once."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2

    (tmp_path / "config.yaml").write_text(
        "name: x\nseed: 3\noptimizer: {name: SGD, lr: 0.1, betas: [0.9, 1], foreach: null}\n"
    )
    for step in (1, 2):
        board = TensorBoard(tmp_path)
        board.log(row(step) | {"time": "2030-01-02T03:04:05+00:00"})
        board.close()
    (events,) = (tmp_path / "tensorboard").glob("events.*")
    values = [value for event in LegacyEventFileLoader(str(events)).Load() for value in event.summary.value]
    (layout,) = [value for value in values if value.metadata.plugin_data.plugin_name == "custom_scalars"]
    charts = layout_pb2.Layout.FromString(layout.tensor.string_val[0]).category[0].chart
    assert {chart.title: list(chart.multiline.tag) for chart in charts} == {
        name: [f"^(train|val|test)/{name}$"] for name in ("loss", "accuracy")
    }
    found = [
        plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content).session_start_info.hparams
        for value in values
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]
    (told,) = [hparams for hparams in found if hparams]
    assert {name: told[name].number_value or told[name].string_value for name in told} == {
        "seed": 3,
        "optimizer.name": "SGD",
        "optimizer.lr": 0.1,
        "optimizer.betas": "[0.9, 1]",
    }
