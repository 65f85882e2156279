"""The steps of a job with a range of nodes: what is started again, and the exit code, with a stand-in for srun."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.local.nodes.board import Board
from launch.local.nodes.board_records import BoardEntry, Member, to_text
from launch.slurm import steps
from launch.slurm.ending.evidence import exit_code_of, lost_by
from launch.slurm.steps import Beat, Steps, own_code, pause_before_next

# The first line of `NODE.script` says what its next step does: `wait` for the file `over`, `lost`, `hang`, a code;
# `silent`: a machine comes that is dead then, which srun does not notice.
SRUN = (
    f"#!{sys.executable}"
    + """
import os, re, sys, time
from pathlib import Path
node = re.search(r"--nodelist=(\\S+)", " ".join(sys.argv))[1]
with open("starts", "a") as starts:
    starts.write(f"{node}\\n")
script = Path(f"{node}.script")
first, *rest = script.read_text().splitlines()
script.write_text("\\n".join(rest or [first]))
if first == "silent":
    Path("member").rename("runs/.nodes/run/member-c.json")
while first in ("hang", "silent") or (first == "wait" and not os.path.exists("over")):
    time.sleep(0.02)
if first == "lost":
    print("srun: error: n0: task 0: Exited with exit code 137", file=sys.stderr)
    sys.exit(137)
code = 0 if first == "wait" else int(first)
if code:
    print(f"srun: error: {node}: task 0: Exited with exit code {code}", file=sys.stderr)
sys.exit(code)
"""
)
START, OVER = BoardEntry(7, ("a", "b"), ("n0", "n1")), BoardEntry(8)


@pytest.fixture
def srun(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the program."""
    (workdir / "srun").write_text(SRUN)
    (workdir / "srun").chmod(0o755)
    (workdir / "runs/run").mkdir(parents=True)
    monkeypatch.setattr(steps, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(steps, "pause_before_next", lambda tries: 0.0 if tries < steps.FEW_TRIES else 60.0)
    monkeypatch.setattr(steps, "CLOSING_SECONDS", 1.0)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)}
    yield workdir
    for number, handler in before.items():
        signal.signal(number, handler)


class Watched(Steps):
    """Steps that are over, by an entry of the board, as soon as so many have been started."""

    over_after = sys.maxsize
    code = 0

    def _code_of_run(self) -> int | None:
        started = Path("starts").read_text().split() if Path("starts").exists() else []
        if len(started) >= self.over_after and not Path("over").exists():
            Path("over").touch()
            Board(Path("runs/run")).add(BoardEntry(8, code=self.code))
        return super()._code_of_run()


def run(scripts: dict[str, str], over_after: int = sys.maxsize, code: int = 0) -> int:
    for node, script in scripts.items():
        Path(f"{node}.script").write_text(script)
    Board(Path("runs/run")).add(START)
    started = Watched(Path("runs/run"), "log", ["./srun"], list(scripts))
    started.over_after, started.code = over_after, code
    return started.run()


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        (0, "", 0),
        (1, "srun: error: n1: task 0: Exited with exit code 1\n", 1),
        (75, "srun: error: n1: task 0: Exited with exit code 75\n", 75),
        (137, "srun: error: n1: task 0: Exited with exit code 137\n", None),  # the launcher was killed
        (137, "srun: error: n1: task 0: Killed\n", None),
        (1, "srun: error: Aborting, io error and missing step on node 0\n", None),
        (1, "srun: error: Unable to create step for job 7: Required node not available\n", None),
    ],
)
def test_what_ends_by_itself_and_what_is_lost(code: int, said: str, expected: int | None) -> None:
    assert own_code(code, said) == expected


def test_pauses_grow_up_to_a_minute() -> None:
    assert [pause_before_next(tries) for tries in (0, 1, 2, 3, 4, 5, 99)] == [5, 5, 10, 20, 40, 60, 60]


def test_a_step_that_is_lost_is_started_again_and_the_others_stay(
    srun: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run({"n0": "wait", "n1": "lost\nlost\nwait"}, over_after=4) == 0
    assert sorted((srun / "starts").read_text().split()) == ["n0", "n1", "n1", "n1"]
    told = capfd.readouterr()
    assert "n1: its step was lost (srun's exit code 137); it is started again in 0 s" in told.out
    assert exit_code_of(told.err, 0) == 0
    assert lost_by(told.err, ["n0", "n1"]) == set()
    assert not list(srun.glob("*.beat"))


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_the_exit_code_is_what_the_machines_have_agreed_on(
    srun: Path, capfd: pytest.CaptureFixture[str], code: int
) -> None:
    """Also where a node hangs, whose srun waits for a slurmstepd that was killed; it is told as lost."""
    assert run({"n0": "wait", "n1": "hang"}, over_after=2, code=code) == code
    assert lost_by(capfd.readouterr().err, ["n0", "n1"]) == {"n1"}


def test_a_node_that_is_not_heard_of_any_more_is_lost(srun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SILENT_SECONDS", 0.3)
    (srun / "member").write_text(to_text(Member("c", "n1", 0.0, ("127.0.0.1",), 1, 1, "same")))
    assert run({"n0": "wait", "n1": "silent\nwait"}, over_after=3) == 0
    assert sorted((srun / "starts").read_text().split()) == ["n0", "n1", "n1"]


def test_a_launcher_that_ends_by_itself_is_not_started_again(srun: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its machine was left out, or there were too few: with nobody left, the code of the last one counts."""
    assert run({"n0": "1", "n1": "1"}) == 1
    assert sorted((srun / "starts").read_text().split()) == ["n0", "n1"]
    assert exit_code_of(capfd.readouterr().err, 137) == 1


def test_where_no_step_comes_to_run_the_job_ends(srun: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run({"n0": "lost", "n1": "lost"}) == 1
    assert (srun / "starts").read_text().split().count("n1") >= steps.FEW_TRIES
    assert lost_by(capfd.readouterr().err, ["n0", "n1"]) == {"n0", "n1"}


def test_where_a_stop_is_asked_for_nothing_is_started_again(srun: Path) -> None:
    (srun / "runs/run/STOP").write_text("SIGUSR2\n")
    assert run({"n0": "75", "n1": "lost"}) == 75
    assert sorted((srun / "starts").read_text().split()) == ["n0", "n1"]


def test_the_sign_of_life_changes_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "BEAT_SECONDS", 0.0)
    with Beat(str(tmp_path / "beat")) as beat:
        seen = []
        for _ in range(3):
            beat.renew()
            seen.append((tmp_path / "beat").read_text())
    assert seen == ["000000000001\n", "000000000002\n", "000000000003\n"]
    assert not (tmp_path / "beat").exists()
