"""What SLURM's commands print, as facts. The samples are SLURM 22.05's own."""

import time
from pathlib import Path

import pytest

from launch.slurm.queue import JobState, NoAnswerError, QueueError, enough_others, insist, parse_states, requeue

SQUEUE = """\
1_2|PENDING|JobArrayTaskLimit|0|N/A|N/A||0|
1_0|RUNNING|None|0|1795291975|1795299175|n0|0|
5|FAILED|NonZeroExitCode|0|1795291996|1795291996|n0|1792|
6|FAILED|JobLaunchFailure|2|1795291996|1795291996|n[0-1]|9|
7|COMPLETED|None|0|1795291996|1795291996|n0|0:0|
8|CANCELLED|None|0|1795291996|1795291996|n0|0:15|
"""


def test_states_of_jobs() -> None:
    """Exit codes as wait() gives them, and as newer versions write them."""
    states = parse_states(SQUEUE)
    assert states["1_2"] == JobState("1_2", "PENDING", "JobArrayTaskLimit", 0, None, None, "", 0)
    assert states["1_0"] == JobState("1_0", "RUNNING", "", 0, 1795291975.0, 1795299175.0, "n0", 0)
    assert (states["6"].restarts, states["6"].nodes) == (2, "n[0-1]")
    assert {job_id: state.exit_code for job_id, state in states.items() if state.exit_code} == {
        "5": 7,
        "6": 137,
        "8": 143,
    }
    assert [job_id for job_id, state in states.items() if state.active] == ["1_2", "1_0"]
    assert [job_id for job_id, state in states.items() if state.waiting] == ["1_2"]


NODES = "n0 mixed\nn1 idle\nn2 down*\nn3 allocated\nn4 drained\nn5 idle*\n"


@pytest.mark.parametrize(
    ("unwanted", "num_nodes", "enough"),
    [([], 3, True), ([], 4, False), (["n1"], 2, True), (["n1"], 3, False), (["n2"], 3, True), (["n0", "n1"], 1, True)],
)
def test_a_node_is_excluded_only_where_enough_others_are_up(unwanted: list[str], num_nodes: int, enough: bool) -> None:
    assert enough_others(NODES, unwanted, num_nodes) is enough


UNHEARD = "Unable to contact slurm controller (connect failure)"


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scontrol that prints what is in `said`, and fails, until the file is gone; each call is a line of `calls`."""
    (tmp_path / "scontrol").write_text(
        '#!/bin/sh\ncd "$(dirname "$0")"\necho "$@" >> calls\n[ -e said ] || exit 0\ncat said >&2\nexit 1\n'
    )
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def test_a_controller_that_is_away_for_a_while_is_asked_again(
    scontrol: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    sleep = time.sleep

    def pause(seconds: float) -> None:
        if seconds < 1:  # subprocess, which looks whether the command has ended
            sleep(seconds)
            return
        pauses.append(seconds)
        if len(pauses) == 3:
            (scontrol / "said").unlink()

    monkeypatch.setattr(time, "sleep", pause)
    (scontrol / "said").write_text(f"scontrol: error: {UNHEARD}\n")
    insist(lambda: requeue("7_1"), 60.0)
    assert pauses == [1.0, 2.0, 4.0]
    assert (scontrol / "calls").read_text() == "requeue 7_1\n" * 4
    assert capsys.readouterr().err == f"scontrol requeue failed: {UNHEARD}; trying again\n" * 3


def test_a_refusal_is_taken_and_no_answer_is_not_waited_for_longer_than_asked(scontrol: Path) -> None:
    (scontrol / "said").write_text("scontrol: error: one\n\nJob has already finished for job 7\n")
    with pytest.raises(
        QueueError, match=r"^scontrol requeue failed: one; Job has already finished for job 7$"
    ) as refused:
        insist(lambda: requeue("7"), 60.0)
    assert refused.type is QueueError
    (scontrol / "said").write_text(UNHEARD)
    with pytest.raises(NoAnswerError):
        insist(lambda: requeue("7"), 0.5)
    assert (scontrol / "calls").read_text() == "requeue 7\n" * 2
