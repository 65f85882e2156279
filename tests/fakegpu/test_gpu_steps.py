"""A step on a GPU waits for nothing, and asks for no more of the device than it did when these ceilings were set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ranks
from gpu_ranks import Gpus
from soak import only_in_soak
from steps import MODELS, table_cases

pytestmark = pytest.mark.slow
# Launches of kernels in a step; steps that need fewer are welcome, and lower these.
COPIES = 5  # of a replayed step: learning rates, indices, labels, crops and flips, and its numbers
CEILINGS = {
    "cnn": 56,
    "cnn, flip and crop": 66,
    "cnn, clipping": 61,
    "cnn, EMA": 57,
    "cnn, audit": 56,
    "cnn, MuonSGD": 178,
    "resnet18, bf16, AdamW": 315,
}


def test_steps_wait_for_nothing_and_launch_no_more_than_before(gpus: Gpus, tmp_path: Path) -> None:
    output = tmp_path / "counts.json"
    arguments = (str(output), list(CEILINGS), ["ours", "ours, captured"])
    codes = gpus.run("steps:count", *arguments, world_size=1, cwd=tmp_path, emulate=False)
    assert codes == [0], ranks.console(tmp_path)
    found = json.loads(output.read_text())
    counts = {name: by_loop["ours"] for name, by_loop in found.items()}
    assert {name: of_step["launch"] for name, of_step in counts.items() if of_step["launch"] > CEILINGS[name]} == {}
    assert {name: (of_step["wait"], of_step["copy D2H"]) for name, of_step in counts.items()} == dict.fromkeys(
        CEILINGS, (0, 0)
    )
    assert all(of_step["launch"] > 1 for of_step in counts.values())
    for name, by_loop in found.items():  # of the host, for a graph; an EMA is a launch of its own
        captured = by_loop["ours, captured"]
        assert captured["graph"] == 1, name
        assert captured["launch"] + captured["graph"] <= 3, name
        assert (captured["wait"], captured["copy D2H"]) == (0, 0), name
        assert captured["copy H2D"] + captured["copy D2D"] <= COPIES, name


@only_in_soak
@pytest.mark.parametrize("model", list(MODELS))
def test_a_captured_step_of_each_network_and_optimizer_is_three_launches_at_most(
    gpus: Gpus, tmp_path: Path, model: str
) -> None:
    names, output = [name for name in table_cases() if name.startswith(f"{model} |")], tmp_path / "counts.json"
    for name in names:  # a process for each: its memory is the host's
        arguments = (str(output), [name], ["ours, captured"])
        codes = gpus.run("steps:count", *arguments, world_size=1, cwd=tmp_path, emulate=False)
        assert codes == [0], ranks.console(tmp_path)
        of_step = json.loads(output.read_text())[name]["ours, captured"]
        assert of_step["launch"] + of_step["graph"] <= 3, name
        assert (of_step["graph"], of_step["wait"], of_step["copy D2H"]) == (1, 0, 0), name
