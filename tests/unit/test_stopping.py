"""Signals and the STOP file set a flag; a second Ctrl-C ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.runs.attempt.stop_request import STOP_SIGNALS, StopFlag, mark_of, write_stop_file
from trainlib.runs.records.reasons import LAUNCHER_DIED, EndCode, EndReason


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_the_flag(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    flag = StopFlag()
    flag.install()
    try:
        assert not flag.requested()
        os.kill(os.getpid(), number)
        assert flag.requested()
        assert flag.reason == EndReason(EndCode.SIGNAL, number.name)
    finally:
        flag.uninstall()
    assert signal.getsignal(number) is before


def test_the_stop_file_asks_until_it_is_honoured(tmp_path: Path) -> None:
    flag = StopFlag()
    flag.watch(tmp_path / "STOP")
    assert not flag.requested()
    (tmp_path / "STOP").touch()
    assert flag.requested()
    flag.acknowledge()
    assert not (tmp_path / "STOP").exists()


def test_one_process_agrees_with_itself_at_once(tmp_path: Path) -> None:
    flag = StopFlag()
    flag.watch(tmp_path / "STOP")
    consensus = StopConsensus(flag, channel=None)
    assert not consensus.agreed(1)
    (tmp_path / "STOP").touch()
    assert consensus.agreed(2)


@pytest.mark.parametrize(("ranks", "every"), [(2, 1), (16, 1), (31, 1), (32, 2), (64, 4), (4096, 256)])
def test_many_ranks_ask_each_other_less_often(ranks: int, every: int) -> None:
    """At the same boundaries on every rank; `agreed` is true at the next one after somebody was asked."""

    handed_in: list[tuple[int, bool]] = []

    class Channel:
        def size(self) -> int:
            return ranks

        def send_flag(self, asked: bool) -> None:
            handed_in.append((boundary, asked))

        def any_flag(self) -> bool:
            return handed_in[-1][1]

    flag = StopFlag()
    consensus = StopConsensus(flag, Channel())
    agreed: list[bool] = []
    for boundary in range(1, 3 * every + 1):
        if boundary == every + 1:
            flag.ask(LAUNCHER_DIED)
        agreed.append(consensus.agreed(len(agreed)))
    assert handed_in == [(every, False), (2 * every, True), (3 * every, True)]
    assert agreed == [False] * (3 * every - 1) + [True]


def test_a_second_ctrl_c_ends_the_process_with_130() -> None:
    program = (
        "import os, signal; from trainlib.runs.attempt.stop_request import StopFlag; flag = StopFlag(); flag.install();"
        "os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGINT); print(flag.reason, flush=True);"
        "os.kill(os.getpid(), signal.SIGINT); print('still here')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 130
    assert done.stdout == "SIGTERM\n"


@pytest.mark.parametrize(
    ("text", "code", "sentence"),
    [
        ("", EndCode.STOP_FILE, "STOP file"),
        ("SIGUSR2\n", EndCode.SIGNAL, "SIGUSR2"),
        ("launch stop\nmore\n", EndCode.STOP_FILE, "launch stop"),
        ("end time\n", EndCode.STOP_FILE, "end time"),  # as the trainer says, but a person wrote it
        ("the launcher died\n", EndCode.STOP_FILE, "the launcher died"),
        ("x" * 300, EndCode.STOP_FILE, "x" * 200),
    ],
)
def test_the_stop_file_says_who_asked(tmp_path: Path, text: str, code: EndCode, sentence: str) -> None:
    flag = StopFlag()
    flag.watch(tmp_path / "STOP")
    (tmp_path / "STOP").write_text(text)
    assert flag.requested()
    assert flag.reason == EndReason(code, sentence)


def test_of_ignored_signals_only_a_terminals_stay_so() -> None:
    """The launcher has its agent ignore them, which the ranks inherit; nohup ignores SIGHUP, and means it."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGHUP)}
    flag = StopFlag()
    flag.install()
    try:
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.reason == EndReason(EndCode.SIGNAL, "SIGTERM")
    finally:
        flag.uninstall()
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_first_reason_stays() -> None:
    flag = StopFlag()
    flag.ask(LAUNCHER_DIED)
    flag.ask(EndReason(EndCode.END_TIME, "end time"))
    assert flag.reason is LAUNCHER_DIED


def test_a_written_stop_file_is_read_back(tmp_path: Path) -> None:
    write_stop_file(tmp_path, "launch stop")
    assert [path.name for path in tmp_path.iterdir()] == ["STOP"]
    flag = StopFlag()
    flag.watch(tmp_path / "STOP")
    assert flag.requested()
    assert flag.reason == EndReason(EndCode.STOP_FILE, "launch stop")


@pytest.mark.parametrize(
    ("token", "is_earlier", "asked"),
    [
        ("mine", False, True),
        ("mine", True, True),  # it names this start: no other can have been meant
        ("another's", False, False),
        (None, False, True),
        (None, True, False),  # made by hand before this start: it asked an earlier one
    ],
)
def test_a_stop_file_asks_the_start_that_it_is_meant_for(
    tmp_path: Path, token: str | None, is_earlier: bool, asked: bool
) -> None:
    write_stop_file(tmp_path, "launch stop", token)
    flag = StopFlag()
    flag.watch(tmp_path / "STOP", "mine", mark_of(tmp_path / "STOP") if is_earlier else "")
    assert flag.requested() == asked
    assert (tmp_path / "STOP").exists() == asked  # what asks nobody any more is removed
    write_stop_file(tmp_path, "launch stop", "mine")
    assert flag.requested()


def test_the_stop_file_of_another_run_in_the_place_of_this_one_stays(tmp_path: Path) -> None:
    """This run was moved, and another one has its name."""
    write_stop_file(tmp_path, "launch stop", "the other's")
    flag = StopFlag()
    flag.watch(tmp_path / "STOP", "mine", is_own=lambda: False)
    assert not flag.requested()
    flag.acknowledge()
    assert (tmp_path / "STOP").exists()


def test_a_person_who_asks_decides_why_it_stops(tmp_path: Path) -> None:
    """Whatever else asks, before or after: SLURM must not start the run again against a person's wish."""
    signalled = EndReason(EndCode.SIGNAL, "SIGTERM")
    for person_first in (True, False):
        flag = StopFlag()
        flag.install()
        flag.watch(tmp_path / "STOP", "mine")
        try:
            if not person_first:
                os.kill(os.getpid(), signal.SIGTERM)
                assert (flag.requested(), flag.reason) == (True, signalled)
            write_stop_file(tmp_path, "launch stop", "mine")
            if person_first:
                assert flag.requested()
            os.kill(os.getpid(), signal.SIGTERM)
            assert flag.requested()
            assert flag.reason == EndReason(EndCode.STOP_FILE, "launch stop")
        finally:
            flag.uninstall()
        flag.acknowledge()
        assert not (tmp_path / "STOP").exists()


def test_a_request_that_comes_after_the_one_that_was_heeded_stays(tmp_path: Path) -> None:
    """Where SLURM starts the job again, it is found there."""
    flag = StopFlag()
    flag.watch(tmp_path / "STOP", "mine")
    write_stop_file(tmp_path, "SIGTERM", "mine")
    assert flag.requested()
    write_stop_file(tmp_path, "launch stop", "mine")
    flag.acknowledge()
    assert (tmp_path / "STOP").exists()
