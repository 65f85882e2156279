"""A training whose steps are replayed as a CUDA graph gives the weights and rows of one whose steps are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ranks
from gpu_ranks import Gpus
from soak import only_in_soak
from trainings import CAPTURED

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=only_in_soak if "resnet" in name else ()) for name in CAPTURED]
)
def test_replayed_steps_have_the_same_bits(gpus: Gpus, tmp_path: Path, name: str) -> None:
    output = tmp_path / "results.json"
    codes = gpus.run("trainings:train_captured", name, str(output), world_size=1, cwd=tmp_path)
    assert codes == [0], ranks.console(tmp_path)
    by_choice = json.loads(output.read_text())
    assert by_choice["auto"].pop("captured"), ranks.console(tmp_path)
    assert not by_choice["False"].pop("captured")
    assert by_choice["auto"] == by_choice["False"]
    assert len({row["loss"] for row in by_choice["auto"]["rows"]}) > 5  # numbers are computed, and change


def test_replayed_steps_that_diverge_end_the_run_with_the_weights_before_it(gpus: Gpus, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    codes = gpus.run("trainings:train_diverging", str(output), world_size=1, cwd=tmp_path)
    assert codes == [0], ranks.console(tmp_path)
    by_choice = json.loads(output.read_text())
    assert by_choice["auto"].pop("captured"), ranks.console(tmp_path)
    assert not by_choice["False"].pop("captured")
    assert by_choice["auto"] == by_choice["False"]
    assert by_choice["auto"]["step"] == 7
    assert by_choice["auto"]["told"].startswith("step 8 was not applied: ")
