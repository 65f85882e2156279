"""Before a run on several machines, a device that multiplies or adds wrongly is named, and nothing is trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch
from torch import Tensor

from trainlib.distributed.checks import before_start
from trainlib.distributed.checks.before_start import multiplies_rightly
from trainlib.errors import WrongDeviceError
from trainlib.runs.files.json_records import read_lines

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 7, 64, 512])
def test_the_product_of_a_good_device_is_right(size: int) -> None:
    assert multiplies_rightly(size, CPU)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 60), (63, 63)])
def test_one_wrong_number_of_a_product_is_found(monkeypatch: pytest.MonkeyPatch, row: int, column: int) -> None:
    def wrong(a_NN: Tensor, b_NN: Tensor) -> Tensor:
        product_NN = a_NN @ b_NN
        product_NN[row, column] += 1
        return product_NN

    monkeypatch.setattr(before_start, "multiply", wrong)
    assert not multiplies_rightly(64, CPU)


def broken(arguments: list[str], what: str) -> int:
    """In each rank, as if each were on a machine of its own: train, with a device that is broken on rank 1."""
    os.environ["LOCAL_WORLD_SIZE"] = "1"
    if os.environ["RANK"] == "1" and what == "product":
        multiply = before_start.multiply
        ranks.replace(before_start, "multiply", lambda a, b: multiply(a, b) + 1)
    if os.environ["RANK"] == "1" and what == "sum":
        all_reduce = torch.distributed.all_reduce

        def wrong(values: Tensor, *rest: Any, **more: Any) -> Any:
            done = all_reduce(values, *rest, **more)
            values[-1] += 1
            return done

        ranks.replace(torch.distributed, "all_reduce", wrong)
    return ranks.main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["product", "sum", "nothing"])
def test_the_wrong_device_of_two_machines_is_named(tmp_path: Path, what: str) -> None:
    tiny.make_images(tmp_path / "images")
    codes = ranks.run(broken, tiny.arguments(tmp_path / "images", 1, 4), what, world_size=2, cwd=tmp_path)
    said = ranks.console(tmp_path)
    if what == "nothing":
        assert codes == [0, 0], said
        assert "checked 2 devices on several machines: products and sums are right" in said
        return
    assert codes == [WrongDeviceError.exit_code] * 2, said
    fault = {"product": "multiplies two matrices wrongly", "sum": "got a wrong sum over all ranks"}[what]
    assert "error: checked before the start, nothing was trained: rank 1 on " in said
    assert fault in said
    assert "rank 0 on" not in said
    assert not read_lines(tmp_path / "runs/run/attempts.jsonl")
