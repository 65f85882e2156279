"""Exact mode on GPUs: all losses, optimizers and classifiers have deterministic kernels; what has none is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
from gpu_ranks import Gpus

from trainlib.config.libraries import catalog

pytestmark = pytest.mark.slow
LOSSES = (*catalog.names("loss"), "CrossEntropyLoss weighted", "NLLLoss weighted")


def told(gpus: Gpus, cwd: Path, function: str, names: list[str]) -> dict[str, Any]:
    output = cwd / "told.json"
    codes = gpus.run(f"determinism:{function}", names, str(output), world_size=1, cwd=cwd, emulate=False)
    assert codes == [0], ranks.console(cwd)
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def test_every_loss_trains_in_strict_mode(gpus: Gpus, tmp_path: Path) -> None:
    assert told(gpus, tmp_path, "losses", list(LOSSES)) == dict.fromkeys(LOSSES, "ok")


def test_every_optimizer_trains_in_strict_mode(gpus: Gpus, tmp_path: Path) -> None:
    names = [name for name in catalog.names("optimizer") if name != "Muon"]  # which takes no convolutions
    assert told(gpus, tmp_path, "optimizers", names) == dict.fromkeys(names, "ok")


# Of torchvision, at the newest torch that pyproject.toml allows.
NOT_DETERMINISTIC: dict[str, str] = {}
TOO_LARGE = ("vit_h_14", "regnet_y_128gf")  # beyond the memory of the machine's addresses


def test_every_classifier_has_a_deterministic_backward_pass(gpus: Gpus, tmp_path: Path) -> None:
    names = [name for name in catalog.names("model") if name not in TOO_LARGE]
    found = told(gpus, tmp_path, "classifiers", names)
    assert {name: message for name, message in found.items() if message != "ok"} == NOT_DETERMINISTIC


def test_a_layer_without_a_deterministic_kernel_is_named_before_training(gpus: Gpus, tmp_path: Path) -> None:
    codes = gpus.run("determinism:refused", world_size=1, cwd=tmp_path, emulate=False)
    assert codes == [0], ranks.console(tmp_path)
