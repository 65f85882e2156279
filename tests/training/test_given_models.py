"""Models of one's own whose layers have two names, or take no part in the forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ranks
import torch
from fit_parts import Net, fit
from safetensors.torch import load_file
from torch import nn

from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import read_lines
from trainlib.runs.records.rows import BY_THE_CLOCK


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    return [{k: row[k] for k in row if k not in BY_THE_CLOCK} for row in read_lines(run.metrics_file)]


def weights_of(run: RunDirectory) -> dict[str, torch.Tensor]:
    return load_file(max(run.checkpoints.glob("step-*")) / "model.safetensors")


class Twice(Net):
    """Its last layer has two names."""

    def __init__(self, num_classes: int):
        super().__init__(num_classes)
        self.again = self.head


def test_a_layer_of_two_names_changes_no_bit(workdir: Path) -> None:
    once, twice = (fit(f"name={model.__name__}", "train.average={}", model=model) for model in (Net, Twice))
    assert rows(twice) == rows(once)
    weights, expected = (weights_of(run) for run in (twice, once))
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    assert torch.equal(weights["again.weight"], expected["head.weight"])
    digest = twice.summary()["weights_sha256"]
    again = fit("name=Twice", "train.average={}", model=Twice, resume="step-00000009")
    assert again.summary()["weights_sha256"] == digest


class Unused(Net):
    def __init__(self, num_classes: int):
        super().__init__(num_classes)
        self.pooler = nn.Linear(3, 3)


def fit_unused() -> None:
    fit(model=Unused)


def test_a_parameter_that_gets_no_gradient_is_refused_on_several_ranks(tmp_path: Path) -> None:
    assert ranks.run(fit_unused, world_size=2, cwd=tmp_path) == [1, 1]
    message = "model: pooler.weight, pooler.bias take no part in the forward pass, and several processes wait"
    assert message in ranks.console(tmp_path, rank=1)
