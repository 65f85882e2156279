"""Why a job ended and what happens to it then: tables of evidence, and the record that they are decided from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.slurm.ending.evidence import attempt_since, exit_code_of, lost_by, queue_says, refusal
from launch.slurm.ending.requeue import Evidence, Refusal, decide_requeue, error_of, find_end_cause
from launch.slurm.queue import JobState
from trainlib.runs.records.failure_record import FailureRecord
from trainlib.runs.records.jobs import JobStart, append, job_lines, unfinished
from trainlib.runs.records.reasons import EndCode

FAILED = FailureRecord("2026-01-01T00:00:00Z", 1, "n1", 7, None, "runs/x/logs/rank-1.log", "RuntimeError: no memory")
STOPPED = Evidence(0, EndCode.SIGNAL, step=9)
BROKEN = Evidence(7, step=9, failure=FAILED)


@pytest.mark.parametrize(
    ("evidence", "cause"),
    [
        (Evidence(0, EndCode.COMPLETED, step=80), "completed"),
        (Evidence(137, EndCode.COMPLETED, step=80, lost_nodes=("n0",)), "completed"),  # killed when all was done
        (replace(STOPPED, code=EndCode.STOP_FILE), "stopped"),
        (replace(STOPPED, code=EndCode.STOP_FILE, lost_nodes=("n1",)), "stopped"),
        (replace(STOPPED, signal="SIGUSR2", seconds_left=3000.0), "preempted"),
        (replace(STOPPED, signal="SIGUSR2", seconds_left=100.0), "time_limit"),
        (replace(STOPPED, seconds_left=194.9), "time_limit"),  # SLURM warns 120 s before the end, or up to 75 s earlier
        (replace(STOPPED, seconds_left=195.0), "preempted"),
        (replace(STOPPED, seconds_left=None), "preempted"),
        (replace(STOPPED, code=EndCode.OTHER_RANK), "preempted"),
        (replace(STOPPED, code=EndCode.END_TIME, seconds_left=40.0), "time_limit"),
        (replace(STOPPED, queue="cancelled"), "cancelled"),
        (replace(STOPPED, queue="time_limit"), "time_limit"),
        (replace(STOPPED, queue="requeued"), "preempted"),
        (replace(STOPPED, lost_nodes=("n1",)), "node_failure"),
        (Evidence(129, signal="SIGTERM"), "preempted"),  # by SIGHUP, the first signal that there is
        (Evidence(128, signal="SIGTERM"), "failure"),
        (Evidence(137, signal="SIGTERM"), "preempted"),  # asked, but killed before it had stopped
        (Evidence(137, signal="SIGTERM", queue="cancelled"), "cancelled"),
        (Evidence(137), "failure"),  # killed unasked: out of memory
        (Evidence(1, EndCode.ERROR, "RuntimeError: x"), "failure"),
        (Evidence(1, queue="requeued"), "preempted"),
        (Evidence(1, queue="requeued", lost_nodes=("n0",)), "node_failure"),
        (
            Evidence(75, EndCode.SIGNAL, seconds_left=3000.0),
            "preempted",
        ),  # with a range, 75 is srun's code too
        (Evidence(75, EndCode.STOP_FILE), "stopped"),
        (Evidence(75, seconds_left=3000.0), "preempted"),  # stopped before it had begun, or between two starts
        (Evidence(75, EndCode.KILLED, seconds_left=100.0), "time_limit"),
        (Evidence(75, queue="cancelled"), "cancelled"),
        (BROKEN, "failure"),
        (replace(BROKEN, signal="SIGUSR2"), "failure"),  # asked as well, but it ended of its own
        (replace(STOPPED, code=EndCode.LAUNCHER_DIED, exit_code=137), "failure"),
    ],
)
def test_causes(evidence: Evidence, cause: str) -> None:
    assert find_end_cause(evidence) == cause


# For each code: srun's exit code then, and what the end of an hour's job comes to: cause, requeue, exit code.
EVERY_CODE = {
    EndCode.COMPLETED: (0, "completed", False, 0),
    EndCode.STOP_FILE: (0, "stopped", False, 75),
    EndCode.SIGNAL: (0, "preempted", True, 75),
    EndCode.OTHER_RANK: (0, "preempted", True, 75),
    EndCode.REGROUP: (0, "preempted", True, 75),
    EndCode.RUNG: (0, "stopped", False, 75),
    EndCode.END_TIME: (0, "time_limit", True, 75),
    EndCode.LAUNCHER_DIED: (137, "failure", True, 75),
    EndCode.ERROR: (1, "failure", True, 1),
    EndCode.KILLED: (137, "failure", True, 137),
    EndCode.HANG: (73, "failure", True, 73),
    EndCode.DEVICE_LOST: (71, "failure", True, 71),
    EndCode.CONNECTION_LOST: (76, "failure", True, 76),
    EndCode.RANKS_DIFFER: (72, "failure", True, 72),
    EndCode.WRONG_DEVICE: (74, "failure", True, 74),
}


@pytest.mark.parametrize("code", EndCode)
def test_every_code_is_decided(code: EndCode) -> None:
    exit_code, *expected = EVERY_CODE[code]
    decision = decide_requeue(Evidence(exit_code, code, step=9, seconds_left=3600.0), [], max_failures=3)
    assert [decision.cause, decision.requeue, decision.exit_code] == expected


def end(cause: str, step: int | None = 5, exit_code: int = 7, error: str = FAILED.error) -> dict[str, Any]:
    return {"event": "end", "cause": cause, "step": step, "exit_code": exit_code, "error": error}


@pytest.mark.parametrize(
    ("evidence", "earlier", "max_failures", "requeue", "exit_code"),
    [
        (Evidence(0, EndCode.COMPLETED), [], 3, False, 0),
        (replace(STOPPED, code=EndCode.STOP_FILE), [], 3, False, 75),
        (replace(STOPPED, queue="cancelled"), [], 3, False, 75),
        (STOPPED, [], 3, True, 75),
        (replace(STOPPED, queue="requeued"), [], 3, False, 75),  # SLURM does it
        (replace(STOPPED, code=EndCode.END_TIME), [], 3, True, 75),
        (Evidence(1, lost_nodes=("n1",)), [], 3, True, 1),
        # real failures end the job, the third one at the latest
        (BROKEN, [], 3, True, 7),
        (BROKEN, [end("failure")], 3, True, 7),
        (BROKEN, [end("failure"), end("failure")], 3, False, 7),
        (BROKEN, [], 1, False, 7),
        (BROKEN, [], 0, False, 7),
        # and nothing else counts as one, however often it happens
        (BROKEN, [end("preempted"), end("time_limit"), end("node_failure")] * 9, 3, True, 7),
        (STOPPED, [end("preempted")] * 99, 0, True, 75),
        (Evidence(1, lost_nodes=("n1",)), [end("node_failure")] * 99, 0, True, 1),
        # a mistake is not mended by another start
        (Evidence(2), [], 3, False, 2),
        # twice the same error before the first step
        (replace(BROKEN, step=None), [], 9, True, 7),
        (replace(BROKEN, step=None), [end("failure", None)], 9, False, 7),
        (replace(BROKEN, step=None), [end("failure", 5)], 9, True, 7),
        (replace(BROKEN, step=None), [end("failure", None, error="another")], 9, True, 7),
        (replace(BROKEN, step=None), [end("failure", None, exit_code=1)], 9, True, 7),
        (BROKEN, [end("failure", None)], 9, True, 7),
        # a time limit that leaves no time for a step
        (replace(STOPPED, code=EndCode.END_TIME, step=None), [end("time_limit", 5)], 3, True, 75),
        (replace(STOPPED, code=EndCode.END_TIME, step=None), [end("time_limit", None)], 3, False, 75),
    ],
)
def test_what_happens_next(
    evidence: Evidence, earlier: list[dict[str, Any]], max_failures: int, requeue: bool, exit_code: int
) -> None:
    decision = decide_requeue(evidence, earlier, max_failures)
    assert (decision.requeue, decision.exit_code) == (requeue, exit_code), decision


def test_lines_are_appended_and_read_back(tmp_path: Path) -> None:
    job = JobStart("12", 4, 1)
    append(tmp_path, job.as_record("begin") | {"nodes": ["n0"]})
    append(tmp_path, job.as_record("end") | {"cause": "completed"})
    begin, ended = job_lines(tmp_path)
    assert (begin["event"], begin["job_id"], begin["array_task"], begin["restart"]) == ("begin", "12", 4, 1)
    assert (ended["event"], ended["cause"]) == ("end", "completed")
    assert begin["time"] <= ended["time"]


def test_starts_without_an_end() -> None:
    def line(event: str, job_id: str, restart: int, task: int | None = None) -> dict[str, Any]:
        return {"event": event, "job_id": job_id, "array_task": task, "restart": restart}

    lines = [
        line("submitted", "1", 0),
        line("begin", "1", 0),
        line("begin", "1", 1),
        line("end", "1", 1),
        line("begin", "2", 0, 3),
        line("begin", "2", 0, 4),
        line("end", "2", 0, 3),
    ]
    assert unfinished(lines) == [lines[1], lines[5]]


@pytest.mark.parametrize(
    ("environment", "queue_id"),
    [
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "14", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "0"}, "12_0"),
    ],
)
def test_a_job_is_named_as_the_queue_names_it(environment: dict[str, str], queue_id: str) -> None:
    """An element of an array has a job id of its own as well, under which it cannot be requeued alone for sure."""
    assert JobStart.of(environment) == JobStart("12", 0 if queue_id == "12_0" else None, 0)
    started_again = JobStart.of(environment | {"SLURM_RESTART_COUNT": "2"})
    assert (started_again.queue_id, started_again.restart) == (queue_id, 2)


RUNNING = JobState("12", "RUNNING", "", 0, 0.0, 3600.0, "n0", 0)


@pytest.mark.parametrize(
    ("state", "restart", "says"),
    [
        (RUNNING, 0, "running"),
        (replace(RUNNING, restarts=1), 1, "running"),
        (replace(RUNNING, state="COMPLETING", restarts=1), 0, "requeued"),
        (replace(RUNNING, state="PENDING", restarts=1), 0, "requeued"),
        (replace(RUNNING, state="COMPLETING"), 0, "cancelled"),
        (replace(RUNNING, state="CANCELLED"), 0, "cancelled"),
        (replace(RUNNING, state="COMPLETING", reason="TimeLimit"), 0, "time_limit"),
        (None, 0, "unknown"),
    ],
)
def test_what_slurm_does_with_a_job(state: JobState | None, restart: int, says: str) -> None:
    """As SLURM 22.05 shows a job whose batch script is being ended."""
    assert queue_says(state, restart) == says


SRUN_LOST_STEP_1 = """\
srun: First task exited 30s ago
srun: StepId=18.0 task 1: running
srun: StepId=18.0 task 0: exited
srun: launch/slurm: _step_signal: Terminating StepId=18.0
srun: Job step aborted: Waiting up to 12 seconds for job step to finish.
srun: error: Timed out waiting for job step to complete
"""
SRUN_LOST_STEP_0 = """\
srun: error: _server_write write failed: Bad file descriptor
srun: error: Aborting, io error and missing step on node 0
srun: Job step aborted: Waiting up to 12 seconds for job step to finish.
srun: error: Timed out waiting for job step to complete
"""


@pytest.mark.parametrize(
    ("said", "nodes"),
    [
        (SRUN_LOST_STEP_1, {"n1"}),
        (SRUN_LOST_STEP_0, {"n0"}),
        ("srun: error: Node failure on n1\n", {"n1"}),
        ("srun: error: n1: task 1: Exited with exit code 7\n", set()),
    ],
)
def test_nodes_that_srun_lost(said: str, nodes: set[str]) -> None:
    """The words of SLURM 22.05, when a slurmstepd was killed, and of its source for a node that went down."""
    assert lost_by(said, ["n0", "n1"]) == nodes


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("srun: error: n0: task 0: Exited with exit code 2\nsrun: error: n1: task 1: Killed\n", 2),
        ("srun: error: n0: task 0: Exited with exit code 76\nsrun: error: n1: task 1: Exited with exit code 7\n", 7),
        ("srun: error: n1: task 1: Out Of Memory\n", 137),
    ],
)
def test_the_code_of_the_task_that_failed(said: str, code: int) -> None:
    """srun itself ends with 137 in all of these, that of the task that it killed."""
    assert exit_code_of(said, 137) == code


def test_an_attempt_of_an_earlier_start_is_not_this_ones(tmp_path: Path) -> None:
    (tmp_path / "attempts.jsonl").write_text(
        '{"event": "start", "time": "2026-01-01T00:00:01+00:00", "from_step": 0}\n'
        '{"event": "end", "time": "2026-01-01T00:00:09+00:00", "status": "stopped", "step": 8, "reason": "SIGTERM"}\n'
    )
    begun = {"time": "2026-01-01T00:00:00+00:00"}
    assert attempt_since(tmp_path, begun) == {"code": EndCode.SIGNAL, "reason": "SIGTERM", "step": 8}
    assert attempt_since(tmp_path, {"time": "2026-01-01T00:00:10+00:00"}) == {}


SRUN_ENDS = """\
srun: cluster configuration lacks support for cpu binding
srun: error: n1: task 0: Exited with exit code 2
srun: error: n[0-1]: tasks 0-1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=26.0
"""
SRUN_REFUSES = """\
srun: unrecognized option '--nonsense=3'
Try "srun --help" for more information
"""
NO_STEP = "srun: error: Unable to create step for job 7: Requested nodes are busy\n"
IN_USE = "some warning\nerror: runs/x is in use: another process is training into it\n"


@pytest.mark.parametrize(
    ("node", "srun", "error", "log"),
    [
        (IN_USE, SRUN_ENDS, "runs/x is in use: another process is training into it", "node-1"),
        ("epoch 1/2\n", SRUN_REFUSES, "unrecognized option '--nonsense=3'", "srun"),
        (None, NO_STEP, "Unable to create step for job 7: Requested nodes are busy", "srun"),
        ("", SRUN_ENDS, None, None),
        (None, None, None, None),
    ],
)
def test_why_no_rank_came_to_run(
    node: str | None, srun: str | None, error: str | None, log: str | None, tmp_path: Path
) -> None:
    """From what srun 22.05 and `launch run` print; another start of the job is not looked at."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/job-7-restart-0-node-0.out").write_text("error: of an earlier start\n")
    for name, text in (("node-1", node), ("srun", srun)):
        if text is not None:
            (tmp_path / f"logs/job-7-restart-1-{name}.out").write_text(text)
    found = refusal(tmp_path, JobStart("7", None, 1))
    assert found == (Refusal(error, f"{tmp_path}/logs/job-7-restart-1-{log}.out") if error else None)
    assert error_of(Evidence(2, refusal=found)) == error
