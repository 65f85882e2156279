"""Two things that happen to one run at the same moment: what is lost, doubled or taken for another run's is nothing."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from tiers import slow_but
from trained import TRAINING

import trainlib.training.session
from launch.cli import main
from launch.runs.control import ask_to_stop
from trainlib.config import load_config
from trainlib.errors import RunDirectoryError
from trainlib.runs.attempt import owner
from trainlib.runs.attempt.owner import OWNER_FILE, Owner, Ownership, read_owner
from trainlib.runs.attempt.status import is_running, read_run
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import read_json

RUN = Path("runs/run")
LONGER = ["run", *TRAINING, "train.epochs=3", "--resume"]
CONFIG = load_config(TRAINING)


class KilledError(BaseException):
    """Stands for a SIGKILL: nothing is written after it."""


@pytest.fixture
def workdir(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained / "runs", tmp_path / "work/runs")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.usefixtures("workdir")
@pytest.mark.parametrize(
    ("place", "code"),
    slow_but([("_begin", 75)], [("load_data", 75), ("_build", 75), ("_begin", 75), ("evaluate_test_split", 0)]),
)
def test_a_stop_between_the_steps_is_heeded_once(place: str, code: int) -> None:
    """While data are loaded, the model is built, before the first step, in the test at the end."""
    function = getattr(trainlib.training.session, place)

    def asked(*arguments: object, **options: object) -> object:
        ask_to_stop(RUN)
        return function(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainlib.training.session, place, asked)
        assert main(LONGER) == code
    assert read_run(RUN).status == ("stopped" if code else "completed")
    assert main(LONGER) == (0 if code else 2)
    assert (read_run(RUN).status, read_run(RUN).step) == ("completed", 24)


@pytest.mark.usefixtures("workdir")
def test_a_longer_run_that_was_killed_before_it_began_is_not_complete() -> None:
    """Its configuration says three epochs, its attempts that the two of before were completed."""
    longer = load_config([*TRAINING, "train.epochs=3"])
    run = RunDirectory.open(longer, resume="")
    run.begin(longer)
    run.close()
    assert read_run(RUN).status == "interrupted"
    assert not RunDirectory(RUN).is_finished
    RunDirectory.open(longer).close()  # goes on


@pytest.mark.usefixtures("workdir")
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_start_afresh_that_ends_in_the_middle_keeps_the_old_run(is_replaced: bool) -> None:
    """Killed when the old run is aside and the new one is not there; or another start takes the name just then."""
    run, others, take = RunDirectory.open(CONFIG, fresh=True), list[RunDirectory](), RunDirectory._take

    def interrupted(self: RunDirectory, owner: Owner | None = None) -> None:
        patch.undo()
        if not is_replaced:
            raise KilledError
        others.append(RunDirectory.open(CONFIG))
        take(self, owner)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "_take", interrupted)
        with pytest.raises(RunDirectoryError if is_replaced else KilledError):
            run.begin(CONFIG)
    run.close()
    old = Path("runs/run.old-1")
    assert (read_run(old).status, read_owner(old)) == ("completed", None)
    new = others[0] if is_replaced else RunDirectory.open(CONFIG)
    new.begin(CONFIG)
    assert read_owner(RUN) == new.owner
    new.close()
    assert (old / "summary.json").exists()


def test_figures_of_a_run_are_not_written_into_one_that_took_its_name(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by `mv`, or `launch run --fresh`, while it is evaluated."""
    (RUN / "evaluation-test.json").unlink()

    def moved(*arguments: object) -> dict[str, object]:
        RUN.rename("runs/moved")
        shutil.copytree("runs/moved", RUN)
        return {"split": "test", "step": 16}

    monkeypatch.setattr("trainlib.inference.evaluate.evaluate", moved)
    assert main(["eval", "run", "--json"]) == 0
    assert (
        "the evaluation was not written (runs/run is not the run that was evaluated any more" in capsys.readouterr().err
    )
    assert not list(workdir.rglob("evaluation-test.json"))


@pytest.mark.parametrize(
    ("machine", "age", "expected"),
    [
        ("elsewhere", 5, True),
        ("elsewhere", 3600, False),
        ("elsewhere", -3600, False),  # a clock that is ahead: `launch list` waits for nobody
        ("the same host, before it was started again", 3600, False),
        ("the same host, in another container", 30, True),
    ],
)
def test_the_lease_of_another_machine_ends(tmp_path: Path, machine: str, age: float, expected: bool) -> None:
    mine = Ownership(tmp_path, renewed=False)
    content = read_json(tmp_path / OWNER_FILE) | {"machine": machine}
    mine.release()
    (tmp_path / OWNER_FILE).write_text(json.dumps(content))
    os.utime(tmp_path / OWNER_FILE, (time.time() - age, time.time() - age))
    assert is_running(tmp_path) == expected


@pytest.mark.usefixtures("workdir")
def test_a_run_of_a_machine_whose_clock_is_wrong_is_not_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor where locks do not hold: who removes looks whether the owner renews its file."""
    monkeypatch.setattr(owner, "DEAD_SECONDS", 0.6)
    mine = Ownership(RUN, renewed=False)
    content = read_json(RUN / OWNER_FILE) | {"machine": "elsewhere"}
    mine.release()
    (RUN / OWNER_FILE).write_text(json.dumps(content))
    os.utime(RUN / OWNER_FILE, (0, 0))
    sleep, times = time.sleep, iter(range(1, 1000))

    def sleep_and_renew(seconds: float) -> None:
        sleep(seconds)
        os.utime(RUN / OWNER_FILE, (next(times), 0))
        os.utime(RUN / OWNER_FILE, (0, next(times)))

    monkeypatch.setattr("time.sleep", sleep_and_renew)
    assert main(["rm", "--force", "run"]) == 2
    assert "runs/run is in use: process" in capsys.readouterr().err
    assert len(list((RUN / "checkpoints").iterdir())) == 2
