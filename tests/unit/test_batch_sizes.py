"""The search of `launch find-batch` for the largest micro-batch that fits. The error is torch's own, raised here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import ranks
import torch
from torch import Tensor

from launch.cli import main as launch
from trainlib.training.tuning import batch_sizes, memory
from trainlib.training.tuning.batch_sizes import Trial, search


def tried(most: int, room: int, bound: int | None = None) -> list[int]:
    """The sizes that are tried, where `room` images fit, and no more than `bound` are to be tried."""
    trials = search(
        most, lambda size: Trial(size, 1.0 if size <= room else None), lambda size: bound is None or size <= bound
    )
    return [one.size for one in trials]


@pytest.mark.parametrize(
    ("most", "room", "sizes"),
    [
        (100, 1000, [2, 4, 8, 16, 32, 64, 100]),
        (1000, 100, [2, 4, 8, 16, 32, 64, 128, 96, 112, 104]),
        (1000, 3, [2, 4, 3]),
        (1000, 1, [2, 1]),
        (1000, 0, [2, 1]),
        (1, 1000, [1]),
        (1, 0, [1]),
    ],
)
def test_sizes_are_doubled_and_then_halved(most: int, room: int, sizes: list[int]) -> None:
    assert tried(most, room) == sizes


def test_a_bound_ends_the_search() -> None:
    assert tried(1000, 1000, bound=20) == [2, 4, 8, 16]


ROOM = 9
WORDS = ["quickstart", "data.limit=64", "train.batch_size=32"]


def find_batch(words: list[str], of_rank: dict[int, int]) -> int:
    """The program as one of the ranks, each of which has room for so many images."""
    import os

    from trainlib.training.programs.find.find_batch import main

    room = of_rank[int(os.environ.get("RANK", "0"))]
    original = memory.fits

    def fits(state: object, dummy_input: Tensor, size: int, held: int) -> bool:
        return size <= room and original(state, dummy_input, size, held)  # type: ignore[arg-type]

    ranks.replace(batch_sizes, "fits", fits)
    return main(words)


def test_the_size_that_the_smallest_rank_holds(tmp_path: Path) -> None:
    assert ranks.run(find_batch, WORDS, {0: ROOM}, world_size=1, cwd=tmp_path) == [0]
    *_, last = ranks.console(tmp_path).splitlines()
    assert last == "train.micro_batch_size=9"
    assert ["10", "does", "not", "fit"] in [line.split() for line in ranks.console(tmp_path).splitlines()]
    assert [path.name for path in tmp_path.iterdir() if path.name != "console-0.txt"] == []


@pytest.mark.slow
def test_all_ranks_agree(tmp_path: Path) -> None:
    """Rank 1 has less memory; only rank 0 prints."""
    assert ranks.run(find_batch, WORDS, {0: 100, 1: 5}, world_size=2, cwd=tmp_path) == [0, 0]
    assert "train.micro_batch_size=5" in ranks.console(tmp_path)
    assert "micro_batch" not in ranks.console(tmp_path, 1)


def test_no_image_at_all(tmp_path: Path) -> None:
    assert ranks.run(find_batch, WORDS, {0: 0}, world_size=1, cwd=tmp_path) == [2]
    assert "not even one image fits" in ranks.console(tmp_path)


def test_memory_that_runs_out_while_timing_is_a_size_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    state = SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cpu")))
    monkeypatch.setattr(batch_sizes, "fits", lambda *arguments: True)
    monkeypatch.setattr(batch_sizes, "trial", no_memory)
    assert batch_sizes._seconds(state, torch.zeros(1, 3, 4, 4), 2) is None  # type: ignore[arg-type]


def test_synchronized_batchnorm_has_no_micro_batches(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(["find-batch", "quickstart", "model={name: resnet18, sync_batchnorm: true}"]) == 2
    assert "there is no micro-batch to find" in capsys.readouterr().err
