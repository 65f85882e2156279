"""A training whose steps are replayed as a CUDA graph gives the weights and rows of one whose steps are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ranks
from gpu_ranks import Gpus
from trainings import CAPTURED

pytestmark = pytest.mark.slow


def test_replayed_steps_have_the_same_bits(gpus: Gpus, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    codes = gpus.run("trainings:train_captured", str(output), world_size=1, cwd=tmp_path)
    assert codes == [0], ranks.console(tmp_path)
    for name, by_choice in json.loads(output.read_text()).items():
        assert by_choice["auto"].pop("captured"), (name, ranks.console(tmp_path))
        assert not by_choice["False"].pop("captured")
        assert by_choice["auto"] == by_choice["False"], name
        assert len({row["loss"] for row in by_choice["auto"]["rows"]}) > len(CAPTURED)
