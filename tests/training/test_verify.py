"""`launch verify`: it says that bits are the same where they are, and finds and names what is planted."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import ranks
import tiny
import torch
from paths import REPOSITORY

from launch.cli import main as launch
from launch.runs.verify import difference, read_records

STEPS = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an elastic run of 8 steps and checkpoints at 4 and 8."""
    cwd = tmp_path_factory.mktemp("verify")
    tiny.make_images(cwd / "images")
    training = tiny.arguments(cwd / "images", 2, 4, "train.reproducibility=elastic", "model={name: cifar10_cnn}")
    assert ranks.train(training, cwd=cwd) == [0], ranks.console(cwd)
    return cwd


def record(folder: str, change: Callable[[], None] | None = None, in_rank: int = 1) -> int:
    """The recording program as one of the ranks, one of which has something changed."""
    from trainlib.training.programs.verify import main

    os.environ["TRAINLAUNCH_NUM_THREADS"] = "1"
    if change is not None and int(os.environ.get("RANK", "0")) == in_rank:
        change()
    return main(["runs/run", folder, "--steps", str(STEPS)])


def compared(trained: Path, folder: Path, change: Callable[[], None] | None = None) -> str | None:
    """What differs between one process and two, one of which is changed."""
    assert ranks.run(record, str(folder), world_size=1, cwd=trained) == [0], ranks.console(trained)
    ranks.run(record, str(folder), change, world_size=2, cwd=trained)
    return difference({size: read_records(folder, size) for size in (1, 2)})


def flip_a_bit() -> None:
    """A bit of the largest element of the summed gradient, in the second step; clipping does not round it away."""
    from trainlib.distributed.allreduce.elastic import ElasticReducer

    finish, calls = ElasticReducer.finish_step, []

    def flipping(self: ElasticReducer) -> None:
        finish(self)
        calls.append(1)
        if len(calls) == 2:
            gradient = self._parameters[8].grad.view(-1)  # type: ignore[union-attr]
            gradient.view(torch.int32)[gradient.abs().argmax()] ^= 1 << 8

    ElasticReducer.finish_step = flipping  # type: ignore[method-assign]


def ask_for_two_threads() -> None:
    os.environ["TRAINLAUNCH_NUM_THREADS"] = "2"


def take_two_threads_unseen() -> None:
    """Behind the check that all ranks are alike."""
    from trainlib.distributed.allreduce.elastic import ElasticReducer

    start = ElasticReducer.start_step

    def starting(self: ElasticReducer) -> None:
        torch.set_num_threads(2)
        start(self)

    ElasticReducer.start_step = starting  # type: ignore[method-assign]


def test_the_same_bits_are_said_to_be_the_same_and_the_run_is_left_alone(trained: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (trained / "runs").rglob("*")}
    assert compared(trained, tmp_path) is None
    assert {path: path.stat().st_mtime_ns for path in (trained / "runs").rglob("*")} == before
    lines = read_records(tmp_path, 2)[1]
    assert lines[0]["from_step"] == 4  # the newest with three steps to go
    assert [line["step"] for line in lines[1:]] == [5, 6, 7]
    assert {len(line["gradients"]) for line in lines[1:]} == {10}


def test_a_flipped_bit_of_a_gradient_is_named(trained: Path, tmp_path: Path) -> None:
    found = compared(trained, tmp_path, flip_a_bit)
    assert found is not None
    assert found.startswith("step 6: the gradient of classifier.1.weight is ")
    assert "with 2 processes on rank 1, and " in found
    assert found.endswith(" with 1 process")


@pytest.mark.slow
def test_a_run_in_exact_mode_shows_where_its_sizes_part(trained: Path, tmp_path: Path) -> None:
    """Two halves of a batch are added up in another order than the whole."""
    exact = tiny.arguments(trained / "images", 2, 4, "model={name: cifar10_cnn}")
    assert ranks.train(exact, cwd=tmp_path) == [0], ranks.console(tmp_path)
    (tmp_path / "records").mkdir()
    found = compared(tmp_path, tmp_path / "records")
    assert found is not None
    assert re.match(
        r"step [567]: the gradient of \S+ is \w+ with 2 processes on rank 0, and \w+ with 1 process$", found
    )


@pytest.mark.slow
def test_a_rank_that_asks_for_other_threads_is_named(trained: Path, tmp_path: Path) -> None:
    found = compared(trained, tmp_path, ask_for_two_threads)
    assert found is not None
    assert found.startswith("with 2 processes on rank 0: train.reproducibility: elastic needs ranks that are alike")
    assert "num_threads is 2 on rank 1 and 1 on rank 0" in found


@pytest.mark.slow
def test_a_rank_that_takes_other_threads_unseen_is_named(trained: Path, tmp_path: Path) -> None:
    """Whether or not its kernels then come to other bits."""
    found = compared(trained, tmp_path, take_two_threads_unseen)
    assert found is not None
    assert "the number of threads is 2 with 2 processes on rank 1" in found or (
        "(threads: 2 with 2 processes on rank 1, 1 with 1 process)" in found
    )


@pytest.mark.slow
def test_the_command(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of it, with ranks under accelerate launch; from the beginning, as no checkpoint has 6 steps to go."""
    monkeypatch.chdir(trained)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    assert launch(["verify", "run", "--steps", "6", "--processes", "1,2"]) == 0
    alone, both, verdict = capsys.readouterr().out.splitlines()
    assert alone.startswith("1 process: steps 1 to 6, weights ")
    assert both == alone.replace("1 process", "2 processes")
    assert verdict == "the same in every bit of every step"


def test_a_checkpoint_can_be_named(trained: Path, tmp_path: Path) -> None:
    assert ranks.run(
        verify, [str(tmp_path), "--steps", "1", "--checkpoint", "step-00000004"], cwd=trained, world_size=1
    ) == [0]
    beginning, step = read_records(tmp_path, 1)[0]
    assert beginning["from_step"] == 4
    assert step["step"] == 5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--steps 9", "--steps: got 9, must be at most 8, which follow step 0 in this run"),
        (
            "--steps 1 --checkpoint step-1",
            "--checkpoint step-1: no such checkpoint of this run; there are: step-00000004",
        ),
    ],
)
def test_what_cannot_be_verified_is_a_mistake(trained: Path, tmp_path: Path, words: str, says: str) -> None:
    assert ranks.run(verify, [str(tmp_path), *words.split()], world_size=1, cwd=trained) == [2]
    ((line,),) = read_records(tmp_path, 1)
    assert says in line["error"]


def verify(arguments: list[str]) -> int:
    """The recording program, as the only rank."""
    from trainlib.training.programs.verify import main

    return main(["runs/run", *arguments])


def test_sizes_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(["verify", "run", "--processes", "2"]) == 2
    assert "must be two or more different numbers, like 1,2,4" in capsys.readouterr().err
