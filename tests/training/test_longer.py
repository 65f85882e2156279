"""A run that becomes longer, with a schedule that is as long as the run: what it trains at, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fit_parts import arrays

import trainlib
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import read_lines

CONFIG: dict[str, Any] = {
    "optimizer": {"name": "AdamW", "lr": 1e-3},
    "scheduler": {"name": "CosineAnnealingLR", "interval": "step"},
    "train": {"epochs": 1, "batch_size": 16},
    "tracking": {"wandb": {"mode": "disabled"}, "tensorboard": False, "progress": False, "log_every": 1},
}
DATASET = trainlib.image_dataset(arrays(0), arrays(100, 30), classes=["a", "b", "c"])


def fit(name: str, *config: Any, **options: Any) -> RunDirectory:
    return trainlib.fit(CONFIG, {"name": name}, *config, dataset=DATASET, **options)


def rates(run: RunDirectory) -> dict[int, float]:
    """The learning rate of each step, by its number."""
    rows = read_lines(run.path / "metrics.jsonl")
    return {row["step"]: row["lr"] for row in rows if row.get("scope") == "step"}


def test_its_rates_are_those_of_a_run_of_that_length(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, run = rates(fit("whole", "train.epochs=2")), fit("run")
    planned, last = max(rates(run)), run.summary()["weights_sha256"]
    capsys.readouterr()
    longer = fit("run", "train.epochs=2", resume="")
    said = capsys.readouterr().out
    assert f"is spread over {len(whole)} steps from here on" in said
    assert f"resuming from step {planned}: not bitwise what a run of this length gives" in said
    assert {step: rate for step, rate in rates(longer).items() if step > planned} == {
        step: rate for step, rate in whole.items() if step > planned
    }
    assert longer.summary()["weights_sha256"] != last
