"""Gradient and weight health: right numbers, in every tracker, without a trace in what is trained."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import tiny
import torch
import wandb_files
from torch import nn

from trainlib.runs.files.json_records import read_lines
from trainlib.training.hooks.health import Health, histogram


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("health") / "images"
    tiny.make_images(root)
    return root


def test_numbers_of_a_step_are_those_of_plain_tensors() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    rows: list[dict[str, Any]] = []
    step = 0
    Health(model, optimizer, 2, lambda: (step + 1, 1), rows.append)  # type: ignore[arg-type]
    for step in range(4):  # noqa: B007 - the position above
        before = {name: value.detach().clone() for name, value in model.named_parameters()}
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().sum().backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters()}  # type: ignore[union-attr]
        optimizer.step()
    assert [row["step"] for row in rows] == [2, 4]
    for name, after in model.named_parameters():
        weight, change = before[name].numpy(), (after.detach() - before[name]).numpy()
        assert rows[-1]["gradient_norm"][name] == pytest.approx(np.linalg.norm(gradients[name].numpy()), rel=1e-5)
        assert rows[-1]["weight_norm"][name] == pytest.approx(np.linalg.norm(weight), rel=1e-5)
        ratio = np.linalg.norm(change) / np.linalg.norm(weight)
        assert rows[-1]["update_ratio"][name] == pytest.approx(ratio, rel=1e-5)


@pytest.mark.parametrize("shape", [(1,), (1000,), (30, 40)])
def test_a_histogram_is_numpys(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found = histogram(values)
    counts, edges = np.histogram(values.double().numpy(), bins=64)
    assert found["counts"] == counts.tolist()
    assert found["edges"] == pytest.approx(edges.tolist())
    assert found["sum"] == pytest.approx(float(values.double().sum()))
    assert found["sum_squares"] == pytest.approx(float(values.double().square().sum()))


def test_a_histogram_takes_what_is_finite() -> None:
    assert sum(histogram(torch.tensor([1.0, float("nan"), float("inf"), 2.0]))["counts"]) == 2
    assert sum(histogram(torch.tensor([float("nan")]))["counts"]) == 0


def tracked(arguments: list[str]) -> int:
    if os.environ.get("RANK", "0") == "0":
        os.environ.pop("WANDB_MODE", None)
    return ranks.main(arguments)


@pytest.mark.slow
def test_looking_changes_no_bit(tmp_path: Path, images: Path) -> None:
    """With clipping, in a run that was continued; what each tracker has of it is the same."""
    plain, watched = tiny.in_folder(tmp_path, "plain"), tiny.in_folder(tmp_path, "watched")
    training = tiny.arguments(images, 3, 4, "scheduler=null")
    assert ranks.train(training, world_size=2, cwd=plain) == [0, 0]
    looking = [*training, "tracking={log_every: 1, tensorboard: true, health: {every: 3st}}", "--resume"]
    for steps in (7, 12):
        short = [*looking, "train.epochs=null", f"train.steps={steps}"]
        codes = ranks.run(tracked, short, world_size=2, cwd=watched)
        assert codes == [0, 0], ranks.console(watched)
    assert tiny.summary(watched)["weights_sha256"] == tiny.summary(plain)["weights_sha256"]

    run = watched / "runs/run"
    rows = read_lines(run / "health.jsonl")
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    step_rows = [row for row in read_lines(run / "metrics.jsonl") if row.get("scope") == "step"]
    assert all(row["grad_norm"] > 0 for row in step_rows)
    parts = np.array(list(rows[0]["gradient_norm"].values()))
    assert min(step_rows[2]["grad_norm"], 1.0) == pytest.approx(np.sqrt((parts**2).sum()), rel=1e-4)  # it is clipped

    numbers = {(row["step"], f"{kind}/{name}") for row in rows for kind in KINDS for name in row[kind]}
    in_wandb = {(row["step"], name) for row in wandb_files.history(run) for name in row if name.split("/")[0] in KINDS}
    points = [(step, name) for step, name, _ in wandb_files.tensorboard_points(run) if name.split("/")[0] in KINDS]
    assert in_wandb == numbers
    assert sorted(points) == sorted(numbers)
    assert json.dumps(rows[0]["histograms"])


KINDS = ("gradient_norm", "weight_norm", "update_ratio")


def test_off_leaves_no_trace(tmp_path: Path, images: Path) -> None:
    assert ranks.train(tiny.arguments(images, 1, 4), cwd=tmp_path) == [0]
    assert not (tmp_path / "runs/run/health.jsonl").exists()
    assert not [row for row in tiny.rows(tmp_path) if "grad_norm" in row]
