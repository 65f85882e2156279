"""Whether a run is started again after a fault of the machine, and what counts as one: decided from facts alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from launch.local.restarts.restart_policy import decide_restart
from launch.local.start.devices import processes_left
from trainlib import errors
from trainlib.runs.attempt.record import restart_of
from trainlib.runs.attempt.step_file import StepFile, Steps, read_step_files
from trainlib.runs.records.reasons import EndCode, machine_fault

AGAIN, REPEATS, USED_UP = "again", "repeats", "used up"


def steps(*pairs: tuple[int, int] | None) -> list[Steps | None]:
    """Where each start began to train, and the last step that it finished."""
    return [Steps(*pair) if pair else None for pair in pairs]


@pytest.mark.parametrize(
    ("starts", "outcome", "number"),
    [
        (steps(None), AGAIN, 1),
        (steps(None, None, None), AGAIN, 3),
        (steps(None, None, None, None), USED_UP, None),  # deaths before a first step count only towards the number
        (steps((0, 16)), AGAIN, 1),
        (steps((0, 16), (15, 16)), REPEATS, None),
        (steps((0, 16), None, (15, 16)), REPEATS, None),  # a death before training says nothing about the step
        (steps((0, 16), (15, 16), None), AGAIN, 3),  # the newest death was not in that step
        (steps((0, 16), (16, 16)), AGAIN, 2),  # the second finished none, so it does not repeat
        (steps((0, 16), (16, 16), (16, 16)), AGAIN, 3),
        (steps((0, 16), (16, 16), (16, 16), (16, 16)), USED_UP, None),
        (steps((0, 16), (12, 15)), AGAIN, 2),  # earlier than before: no progress
        (steps((0, 16), (12, 15), (12, 14)), AGAIN, 3),
        (steps((0, 16), (12, 15), (12, 14), (12, 13)), USED_UP, None),
        (steps((0, 16), (12, 15), (12, 17)), AGAIN, 1),  # a step that was never finished before: counted anew
        (steps(None, None, None, (0, 1)), AGAIN, 1),
        (steps(*((step, step + 1) for step in range(100))), AGAIN, 1),
        (steps((40, 40), (40, 41)), AGAIN, 1),
    ],
)
def test_a_run_is_started_again_while_it_comes_further(
    starts: list[Steps | None], outcome: str, number: int | None
) -> None:
    decision = decide_restart(starts, 3)
    assert decision.number == number
    assert ("repeats" in decision.why_not, "--restarts" in decision.why_not) == (outcome == REPEATS, outcome == USED_UP)


def test_a_repeated_failure_names_the_step_and_zero_restarts_say_nothing() -> None:
    assert "step 16" in decide_restart(steps((0, 16), (15, 16)), 100).why_not
    assert decide_restart(steps(None), 0).why_not == ""
    assert decide_restart(steps(None), 0).number is None


def test_restarts_that_fail_at_once_do_not_spin() -> None:
    pauses = [decide_restart(steps(*[None] * count), 100).pause for count in range(1, 12)]
    assert pauses[:4] == [0.0, 1.0, 2.0, 4.0]
    assert pauses[-1] == 30.0


@pytest.mark.parametrize(
    ("exit_code", "fault"),
    [
        *((-number, EndCode.KILLED) for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)),
        *((-number, None) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)),
        *((code, None) for code in (0, errors.EXIT_FAILURE, errors.EXIT_USER_ERROR, errors.EXIT_STOPPED, 98, 130, 137)),
        (errors.EXIT_HANG, EndCode.HANG),
        (errors.DeviceLostError.exit_code, EndCode.DEVICE_LOST),
        (errors.ConnectionLostError.exit_code, EndCode.CONNECTION_LOST),
        (errors.RanksDifferError.exit_code, EndCode.RANKS_DIFFER),
    ],
)
def test_what_is_the_machines_fault(exit_code: int, fault: EndCode | None) -> None:
    assert machine_fault(exit_code) is fault
    assert fault is None or fault.status == "failed"


def test_how_far_a_rank_has_come_outlives_it(tmp_path: Path) -> None:
    assert read_step_files(None) == read_step_files(tmp_path / "missing") == read_step_files(tmp_path) == {}
    file, other = StepFile(tmp_path, 0, 12), StepFile(tmp_path, 11, 12)
    file.write(13)
    file.write(14)  # not closed: as where it is killed
    (tmp_path / "step-2").write_bytes(b"cut")
    assert read_step_files(tmp_path) == {0: Steps(12, 14), 11: Steps(12, 12)}
    file.close()
    other.close()


@pytest.mark.parametrize(
    ("gpus", "is_elastic", "left"), [(4, False, 4), (8, True, 4), (3, True, 3), (3, False, None), (0, True, None)]
)
def test_what_is_left_of_the_devices(gpus: int, is_elastic: bool, left: int | None) -> None:
    if left is not None:
        assert processes_left(4, gpus, is_elastic=is_elastic) == left
        return
    with pytest.raises(errors.TrainlaunchError, match=f"{gpus} GPUs .* still answer, and 4 processes"):
        processes_left(4, gpus, is_elastic=is_elastic)


@pytest.mark.parametrize("text", ["", "x", "[]", '{"restart": -1}', '{"reason": 5}'])
def test_a_damaged_variable_of_the_launcher_is_left_out(text: str) -> None:
    assert restart_of({"TRAINLAUNCH_RESTART": text}) == {}
    assert restart_of({"TRAINLAUNCH_RESTART": '{"restart": 1, "cause": "killed"}'}) == {"restart": 1, "cause": "killed"}
