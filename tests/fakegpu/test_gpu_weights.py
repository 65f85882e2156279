"""Trainings on emulated GPUs give the weights and rows of as many CPU ranks, in every bit."""

from __future__ import annotations

import json
from typing import Any

import pytest
import ranks
from gpu_ranks import Gpus, run_on_cpu
from trainings import ELASTIC, ON_THREE, TRAININGS

pytestmark = pytest.mark.slow
WORLD_SIZES = (1, 2, 3)
CASES = [(name, size) for name in TRAININGS for size in WORLD_SIZES if size < 3 or name in ON_THREE]


@pytest.fixture(scope="module")
def results(gpus: Gpus, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, Any]]:
    """What all trainings gave, by kind of device and number of ranks."""
    found = {}
    for world_size in WORLD_SIZES:
        for device, run in (("cpu", run_on_cpu), ("cuda", gpus.run)):
            cwd = tmp_path_factory.mktemp(f"{device}{world_size}")
            names, output = [name for name, size in CASES if size == world_size], cwd / "results.json"
            codes = run("trainings:train_all", names, str(output), world_size=world_size, cwd=cwd)
            assert codes == [0] * world_size, "\n".join(ranks.console(cwd, rank) for rank in range(world_size))
            found[device, world_size] = json.loads(output.read_text())
    return found


@pytest.mark.parametrize(("name", "world_size"), CASES)
def test_gpus_give_the_bits_of_cpu_ranks(
    results: dict[tuple[str, int], dict[str, Any]], name: str, world_size: int
) -> None:
    on_cpu, on_gpu = (results[device, world_size][name] for device in ("cpu", "cuda"))
    assert (on_cpu.pop("device"), on_gpu.pop("device")) == ("cpu", "cuda")
    assert on_gpu | {"captured": False} == on_cpu
    assert len({row["loss"] for row in on_gpu["rows"]}) > 1  # numbers are computed, and are no zeros


@pytest.mark.parametrize("name", ELASTIC)
def test_elastic_mode_gives_the_same_bits_on_any_number_of_gpus(
    results: dict[tuple[str, int], dict[str, Any]], name: str
) -> None:
    assert len({results["cuda", world_size][name]["weights"] for world_size in WORLD_SIZES}) == 1
