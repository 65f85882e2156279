"""Asked to stop, killed or moved in a run's first and last seconds, when it does not train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from tiers import slow_but

import trainlib.train
from launch.cli import main
from launch.runs.control import ask_to_stop
from trainlib.runs.attempt.record import Attempt
from trainlib.runs.attempt.status import read_run
from trainlib.runs.directory import RunDirectory
from trainlib.training.checkpoints.checkpoint import Contents
from trainlib.training.checkpoints.manager import CheckpointManager

RUN = Path("runs/run")


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    """Undone in the middle of a test, which the one that changes the folder must not be."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture
def training(workdir: Path) -> Callable[[int], list[str]]:
    tiny.make_images(workdir / "images")
    return lambda epochs: [
        "run",
        *tiny.arguments(Path("images"), epochs, 4, "tracking.progress=false", "scheduler=null"),
    ]


@pytest.mark.parametrize("fresh", slow_but([False], [False, True]))
def test_a_stop_while_the_run_starts_is_honoured(
    training: Callable[[int], list[str]], fresh: bool, patch: pytest.MonkeyPatch
) -> None:
    if fresh:
        assert main(training(1)) == 0
    claim = RunDirectory.claim

    def asked(self: RunDirectory) -> None:
        if not self._is_claimed:
            ask_to_stop(self.path)
        claim(self)

    patch.setattr(RunDirectory, "claim", asked)
    assert main([*training(1), *(["--fresh"] if fresh else [])]) == 75
    assert tiny.attempts(Path(), "end")[-1]["reason"] == "launch stop"
    assert not (RUN / "STOP").exists()
    patch.undo()
    assert main(training(1)) == 0


def test_a_stop_after_the_last_step_stops_no_later_start(
    training: Callable[[int], list[str]], patch: pytest.MonkeyPatch
) -> None:
    patch.setattr(trainlib.train, "draw_curves", ask_to_stop)
    assert main(training(1)) == 0
    assert (RUN / "STOP").exists()
    patch.undo()
    assert main([*training(2), "--resume"]) == 0
    assert not (RUN / "STOP").exists()


def test_a_run_that_was_killed_after_its_summary_gets_what_is_missing(
    training: Callable[[int], list[str]], patch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        """Stands for a SIGKILL: nothing is written after it."""

    write_summary = RunDirectory.write_summary

    def write_and_die(self: RunDirectory, summary: dict[str, object]) -> None:
        write_summary(self, summary)
        patch.setattr(RunDirectory, "write_summary", lambda self, summary: None)
        raise KilledError

    patch.setattr(RunDirectory, "write_summary", write_and_die)
    patch.setattr(Attempt, "end", lambda self: None)
    with pytest.raises(KilledError):
        main(training(1))
    patch.undo()
    before = read_run(RUN)
    assert (before.status, before.summary["status"]) == ("completed", "completed")
    assert not (RUN / "evaluation-test.json").exists()
    assert main(training(1)) == 0
    after = read_run(RUN)
    assert after.summary["weights_sha256"] == before.summary["weights_sha256"]
    assert (RUN / "evaluation-test.json").exists()
    assert main(training(1)) == 2  # now it is finished


@pytest.mark.slow
def test_a_run_that_is_moved_ends_and_writes_into_no_other(
    training: Callable[[int], list[str]], patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = CheckpointManager.save

    def moved(self: CheckpointManager, contents: Contents, flush: Callable[[], None]) -> None:
        if contents.step == 8:
            RUN.rename("runs/moved")
            (RUN / "checkpoints").mkdir(parents=True)
        save(self, contents, flush)

    patch.setattr(CheckpointManager, "save", moved)
    assert main(training(3)) == 2
    assert "runs/run is not this run's directory any more: it was moved" in capsys.readouterr().err
    assert [path.name for path in RUN.rglob("*")] == ["checkpoints"]
    assert read_run(Path("runs/moved")).status == "interrupted"
    patch.undo()
    (RUN / "checkpoints").rmdir()
    RUN.rmdir()
    Path("runs/moved").rename(RUN)
    assert main(training(3)) == 0


@pytest.mark.slow
def test_a_kill_before_the_rows_are_cut_leaves_no_checkpoint_without_its_rows(
    training: Callable[[int], list[str]], patch: pytest.MonkeyPatch
) -> None:
    """`--resume CHECKPOINT` sets newer checkpoints aside before it cuts off the rows that led to them."""
    assert main(training(2)) == 0
    rows = (RUN / "metrics.jsonl").read_bytes()

    def die(*arguments: object) -> None:
        raise ConnectionAbortedError("killed")

    patch.setattr("trainlib.training.session.open_trainer", die)
    assert main([*training(2), "--resume", "step-00000004"]) == 1
    assert (RUN / "metrics.jsonl").read_bytes() == rows
    assert [path.name for path in RUN.glob("checkpoints/step-????????")] == ["step-00000004"]
    patch.undo()
    assert main(training(2)) == 0
