"""Removing runs and checkpoints: what would be lost for good, or is in use, stays; what is kept still loads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from locks import holding_lock, owning
from parts import resolved
from paths import REPOSITORY

from launch.cli import main
from trainlib.errors import CheckpointError, RunDirectoryError
from trainlib.runs.directory import RunDirectory
from trainlib.runs.records.checkpoints import steps_in
from trainlib.training.checkpoints import checkpoint, space
from trainlib.training.checkpoints.after import keep_after
from trainlib.training.checkpoints.best import best_or_newest
from trainlib.training.checkpoints.checkpoint import Contents

MODEL_STATE = {"weight": torch.arange(6.0)}


def run_with(directory: Path, *steps: int, best: int | None = None) -> Path:
    (directory / "checkpoints").mkdir(parents=True)
    (directory / "lock").touch()
    (directory / "config.yaml").write_text("seed: 0\n")
    for step in steps:
        facts = {"best_step": best} if best else {}
        checkpoint.save(directory / "checkpoints", Contents(step, MODEL_STATE, {"step": step}, facts))
    return directory


def names(directory: Path) -> list[int]:
    return list(steps_in(directory / "checkpoints"))


@pytest.mark.parametrize(
    ("words", "best", "left"),
    [([], 20, [20, 40]), ([], None, [40]), (["--keep=best"], 20, [20]), (["--keep=last"], 20, [40])],
)
def test_best_and_last_stay(words: list[str], best: int | None, left: list[int], workdir: Path) -> None:
    run = run_with(workdir / "runs/a", 10, 20, 30, 40, best=best)
    assert main(["prune", "a", *words]) == 0
    assert names(run) == left
    assert main(["prune", "a", *words]) == 0
    assert names(run) == left
    assert best_or_newest(run)[0].step == (40 if best is None or words == ["--keep=last"] else 20)


def test_weights_alone_load_and_no_training_goes_on_from_them(workdir: Path) -> None:
    run = run_with(workdir / "runs/a", 10, 20, best=10)
    assert main(["prune", "a", "--weights-only"]) == 0
    for path in steps_in(run / "checkpoints").values():
        kept = checkpoint.verify(path)
        assert torch.equal(kept.model_state()["weight"], MODEL_STATE["weight"])
        assert not (path / "trainer.pt").exists()
        with pytest.raises(
            CheckpointError, match=r"only the weights were kept .* model.weights=run:a begins a new run"
        ):
            kept.trainer_state()


def test_a_damaged_last_one_is_not_what_stays(workdir: Path) -> None:
    run = run_with(workdir / "runs/a", 10, 20)
    (run / "checkpoints/step-00000020/model.safetensors").write_bytes(b"x")
    keep_after(run, ["last"], optimizer=True)
    assert checkpoint.verify(run / "checkpoints/step-00000010").step == 10


def test_nothing_is_removed_where_nothing_is_whole(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with(workdir / "runs/a", 10)
    (run / "checkpoints/step-00000010/model.safetensors").write_bytes(b"x")
    assert main(["prune", "a"]) == 2
    assert "nothing was removed" in capsys.readouterr().err
    assert names(run) == [10]


@pytest.mark.parametrize("words", [["rm", "a"], ["rm", "--force", "a"], ["prune", "a"]])
def test_a_run_that_is_running_stays(words: list[str], workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with(workdir / "runs/a", 10, 20)
    with owning(run):
        assert main(words) == 2
    assert "a is running: launch stop a ends it; nothing was removed" in capsys.readouterr().err
    assert names(run) == [10, 20]


def test_runs_are_removed_all_or_none(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, full = run_with(workdir / "runs/a"), run_with(workdir / "runs/b", 10)
    assert main(["rm", "a", "b"]) == 2
    assert "launch rm --force b removes them" in capsys.readouterr().err
    assert empty.is_dir()
    assert main(["rm", "a", "b", "--force"]) == 0
    assert list((workdir / "runs").iterdir()) == []
    assert not full.exists()


def test_none_is_removed_where_the_last_one_is_in_use(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a reader that holds its lock, for example."""
    first, last = run_with(workdir / "runs/a", 10, 20, 30), run_with(workdir / "runs/b", 10, 20, 30)
    with holding_lock(last, "LOCK_SH"):
        for words in (["rm", "--force", "a", "b"], ["prune", "a", "b"]):
            assert main(words) == 2
            assert "b is in use by a process that reads it" in capsys.readouterr().err
            assert names(first) == names(last) == [10, 20, 30]


def test_none_is_pruned_where_the_last_one_has_nothing_whole(workdir: Path) -> None:
    first, last = run_with(workdir / "runs/a", 10, 20, 30), run_with(workdir / "runs/b", 10)
    (last / "checkpoints/step-00000010/model.safetensors").write_bytes(b"x")
    assert main(["prune", "a", "b"]) == 2
    assert names(first) == [10, 20, 30]


@pytest.mark.parametrize("words", [["rm", "--force", "run"], ["prune", "run"]])
def test_no_training_begins_while_a_run_is_removed_or_pruned(
    words: list[str], workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with(workdir / "runs/run", 10, 20, 30)
    refused: list[str] = []

    def start(*arguments: object, **options: object) -> None:
        monkeypatch.undo()
        monkeypatch.chdir(workdir)
        with pytest.raises(RunDirectoryError) as caught:
            RunDirectory.open(resolved({"name": "run"}), fresh=True)
        refused.append(str(caught.value))

    monkeypatch.setattr(shutil, "rmtree", start)
    assert main(words) == 0
    assert len(refused) == 1
    assert "runs/run is in use: process" in refused[0]


def test_a_link_is_not_followed(workdir: Path) -> None:
    run = run_with(workdir / "elsewhere", 10)
    (workdir / "runs").mkdir()
    (workdir / "runs/a").symlink_to(run)
    assert main(["rm", "--force", "a"]) == 2
    assert names(run) == [10]


usage = namedtuple("usage", "total used free")


@pytest.mark.parametrize(
    ("free", "expected"), [(50_000, None), (49_999, True), (20_000, True), (19_999, False), (0, False)]
)
def test_room_for_checkpoints_is_compared_with_what_is_free(
    free: int, expected: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three are kept, beside the best, and one is being written: five of 10 kB; without room for two nothing begins."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, free))
    problem = space.space_problem(tmp_path / "runs/x/checkpoints", 10_000, 3)
    assert (None if problem is None else problem[0]) == expected
    if problem is not None:
        assert f"{tmp_path} has {free / 1e6:.1f} MB free" in problem[1]


@pytest.mark.parametrize("words", [["--runs", "there", "list"], ["list", "--runs=there"], ["list"]])
def test_another_folder_of_runs(words: list[str], workdir: Path) -> None:
    run_with(workdir / "there/a")
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        **({"TRAINLAUNCH_RUNS": "there"} if len(words) == 1 else {}),
    }
    command = [sys.executable, "-m", "launch", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1].split()[:2] == ["a", "new"]
