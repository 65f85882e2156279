"""Starting a run again after faults of the machine: real files, and starts that only say how they ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from needs import need_memory_folder
from parts import resolved
from paths import REPOSITORY

from launch.local.outcome.ending import Ending
from launch.local.restarts.healing import Start, run_healing
from launch.local.stop_request import StopRequest
from launch.runs.control import ask_to_stop
from trainlib.errors import EXIT_STOPPED, RunDirectoryError
from trainlib.runs.attempt.owner import LAUNCHER, read_owner
from trainlib.runs.attempt.snapshot_folder import snapshot_folder
from trainlib.runs.attempt.status import read_run
from trainlib.runs.attempt.step_file import Steps
from trainlib.runs.attempt.stop_request import is_meant_for, write_stop_file
from trainlib.runs.directory import RunDirectory
from trainlib.runs.records.reasons import EndCode

CONFIG = resolved({"name": "run"})
KILLED = Ending(137, "error: rank 1 died", EndCode.KILLED, "rank 1 was killed by SIGKILL", "host h", 1, begun=True)
DONE = Ending(0, begun=True)


class Starts:
    """Starts of a run, each of which ends as `endings` say, after `then` was called."""

    def __init__(self, *endings: Ending, then: Callable[[Start], object] = lambda start: None):
        self.endings, self.then = list(endings), then
        self.seen: list[Start] = []

    def __call__(self, start: Start) -> Ending:
        self.seen.append(start)
        self.then(start)
        return self.endings.pop(0)


def heal(starts: Starts, directory: Path, most: int = 3) -> int:
    return run_healing(starts, directory, StopRequest(directory), most)


def attempt_lines(directory: Path, *lines: dict[str, Any]) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("code", [0, 1, 2, 75, 143])
def test_what_is_no_fault_of_the_machine_ends_the_run_at_once(
    code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heal(Starts(Ending(code, "words")), tmp_path / "run") == code
    assert capsys.readouterr().err == "words\n"
    assert not (tmp_path / "run").exists()


def test_a_fault_of_the_machine_is_told_in_one_line_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run/checkpoints/step-00000120").mkdir(parents=True)
    starts = Starts(KILLED, DONE)
    assert heal(starts, tmp_path / "run") == 0
    line = "rank 1 was killed by SIGKILL (host h); starting again from step 120, restart 1 of 3\n"
    assert capsys.readouterr().err == line
    assert (tmp_path / "run/logs/launcher.log").read_text() == line
    assert [(start.has_begun, start.is_restart) for start in starts.seen] == [(False, False), (True, True)]
    told = json.loads(starts.seen[1].variables["TRAINLAUNCH_RESTART"])
    assert told == {"restart": 1, "cause": "killed", "reason": "rank 1 was killed by SIGKILL (host h)"}
    assert "TRAINLAUNCH_RESTART" not in starts.seen[0].variables


def test_before_an_attempt_has_begun_the_options_hold_again(tmp_path: Path) -> None:
    starts = Starts(Ending(137, "", EndCode.KILLED, "rank 0 died", "host h"), DONE)
    assert heal(starts, tmp_path / "run") == 0
    assert [start.has_begun for start in starts.seen] == [False, False]


def test_a_failure_that_repeats_is_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    starts = Starts(replace(KILLED, steps=Steps(0, 16)), replace(KILLED, steps=Steps(15, 16)))
    assert heal(starts, tmp_path / "run") == 137
    printed = capsys.readouterr().err
    assert "error: rank 1 died\n" in printed
    assert "\nnot started again: it ended like this twice after step 16" in printed
    log = (tmp_path / "run/logs/launcher.log").read_text()
    assert "rank 1 was killed by SIGKILL (host h); not started again: it ended like this twice" in log


def test_snapshots_are_handed_on_but_not_that_of_the_step_that_the_rank_died_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the next start could not finish that step, and a failure that repeats would look like chance."""
    need_memory_folder()
    (tmp_path / "run/checkpoints/step-00000020").mkdir(parents=True)
    seen: list[list[str]] = []

    def train(start: Start) -> None:
        folder = snapshot_folder(start.variables)
        assert folder is not None
        seen.append(sorted(path.name for path in folder.glob("step-*")))
        for step in (30, 36):
            (folder / f"step-000000{step}").mkdir(exist_ok=True)

    starts = Starts(replace(KILLED, steps=Steps(0, 36)), KILLED, DONE, then=train)
    assert heal(starts, tmp_path / "run") == 0
    assert seen == [[], ["step-00000030"], ["step-00000030", "step-00000036"]]
    printed = capsys.readouterr().err
    assert "starting again from step 30, restart 1" in printed
    assert "starting again from step 36, restart 2" in printed
    last = snapshot_folder(starts.seen[-1].variables)
    assert last is not None
    assert not last.exists()


def test_no_restarts_leave_the_words_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert heal(Starts(KILLED), tmp_path / "run", most=0) == 137
    assert capsys.readouterr().err == "error: rank 1 died\n"


def test_between_two_starts_the_directory_is_kept_and_the_next_start_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"

    def train(start: Start) -> None:
        if start.is_restart:
            assert read_run(directory).status == "running"
            with pytest.raises(RunDirectoryError, match="in use"):
                RunDirectory.open(CONFIG, runs=tmp_path)
        monkeypatch.setenv(LAUNCHER, start.variables[LAUNCHER])
        run = RunDirectory.open(CONFIG, runs=tmp_path)
        run.begin(CONFIG)
        assert run.owner is not None
        assert run.owner.id == start.variables[LAUNCHER].split()[0]
        monkeypatch.delenv(LAUNCHER)
        run.close()

    assert heal(Starts(KILLED, KILLED, DONE, then=train), directory) == 0
    assert read_owner(directory) is None
    RunDirectory.open(CONFIG, runs=tmp_path).close()


DYING = """\
import os, signal, sys
from pathlib import Path
from trainlib.runs.attempt.owner import Ownership
Path(sys.argv[1]).mkdir(exist_ok=True)
Ownership(Path(sys.argv[1]))
os.kill(os.getpid(), signal.SIGKILL)
"""


def die(start: Start, directory: Path) -> None:
    """Leave the entry of an owner who was killed."""
    environment = os.environ | dict(start.variables) | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", DYING, str(directory)], env=environment, check=False)


def test_a_stop_between_two_starts_is_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "run"
    starts = Starts(KILLED, then=lambda start: die(start, directory))
    monkeypatch.setattr("launch.local.restarts.healing._tell_restart", lambda *told: ask_to_stop(directory))
    assert heal(starts, directory) == EXIT_STOPPED
    assert "stopped between two starts" in capsys.readouterr().err
    assert len(starts.seen) == 1
    assert not (directory / "STOP").exists()
    assert read_owner(directory) is None


@pytest.mark.parametrize("by", ["launch stop", "launch cancel", "a file made by hand"])
def test_who_asked_for_an_end_gets_no_restart(by: str, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()

    def end(start: Start) -> None:
        token = start.variables[LAUNCHER].split()[0]
        (directory / "STOP").touch() if "hand" in by else write_stop_file(directory, by, token)

    assert heal(Starts(KILLED, then=end), directory) == 137
    assert not (directory / "STOP").exists()


def test_a_stop_file_of_another_start_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    write_stop_file(tmp_path / "run", "launch stop", "another")
    assert heal(Starts(KILLED, DONE), tmp_path / "run") == 0
    assert is_meant_for(tmp_path / "run/STOP", "another")


@pytest.mark.parametrize(
    ("code", "rank", "expected"),
    [
        ("completed", 1, 0),
        ("completed", None, 0),
        ("stop_file", 1, EXIT_STOPPED),
        ("signal", 1, EXIT_STOPPED),
        ("signal", None, None),  # the launcher's own, for ranks whose agent was killed
        ("end_time", None, EXIT_STOPPED),
        ("launcher_died", None, None),
        ("connection_lost", 1, None),
        ("killed", 1, None),
    ],
)
def test_a_death_after_the_end_of_an_attempt_changes_nothing(
    code: str, rank: int | None, expected: int | None, tmp_path: Path
) -> None:
    """None: it is started again. Rank None: the agent has died."""
    directory = tmp_path / "run"
    status = EndCode(code).status
    end = {"event": "end", "attempt": 1, "status": status, "code": code, "step": 9}
    attempt_lines(directory, {"event": "start", "attempt": 1}, end)
    (directory / "summary.json").write_text(json.dumps({"status": status}))
    starts = Starts(replace(KILLED, rank=rank), Ending(7))
    assert heal(starts, directory) == (7 if expected is None else expected)
    assert len(starts.seen) == (2 if expected is None else 1)


@pytest.mark.parametrize(
    ("wrong", "can_do_without", "codes"), [("GPU-1", 1, 0), ("", 1, 0), ("GPU-1", 0, 74), (None, 1, 74)]
)
def test_a_device_that_computes_wrongly_is_left_out_where_that_is_possible(
    wrong: str | None, can_do_without: int, codes: int, tmp_path: Path
) -> None:
    ending = Ending(74, "error", EndCode.WRONG_DEVICE, "rank 0 found", "host h", 0, begun=True, wrong=wrong)
    starts = Starts(ending, DONE)
    stop = StopRequest(tmp_path / "run")
    code = run_healing(starts, tmp_path / "run", stop, 3, may_leave_out=lambda devices: devices <= can_do_without)
    assert code == codes
    assert [start.left_out for start in starts.seen] == [(), (wrong,)][: 2 if codes == 0 else 1]
