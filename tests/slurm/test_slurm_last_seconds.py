"""The last seconds of a job's start: killed when all was done, or asked to stop when the run did not look any more."""

from pathlib import Path

import pytest

from launch.slurm.ending.evidence import attempt_since, gather, stop_asked_by_a_person
from launch.slurm.ending.requeue import Cause, decide_requeue
from launch.slurm.job import _withdraw_stop
from trainlib.runs.attempt.stop_request import write_stop_file
from trainlib.runs.records.jobs import JobStart
from trainlib.runs.records.reasons import EndCode


def test_an_attempt_that_was_killed_after_its_summary_is_complete(tmp_path: Path) -> None:
    (tmp_path / "attempts.jsonl").write_text('{"event": "start", "time": "2026-01-01T00:00:01+00:00"}\n')
    begun = {"time": "2026-01-01T00:00:00+00:00"}
    assert attempt_since(tmp_path, begun)["code"] is None
    (tmp_path / "summary.json").write_text('{"status": "failed"}')
    assert attempt_since(tmp_path, begun)["code"] is None
    (tmp_path / "summary.json").write_text('{"status": "completed"}')
    assert attempt_since(tmp_path, begun)["code"] is EndCode.COMPLETED


@pytest.mark.parametrize(
    ("asked_by", "token", "asked"),
    [
        ("launch stop", "job 7", "launch stop"),  # also of an earlier start of this job
        ("launch stop", "job 8", None),
        ("launch stop", "of a run outside of a job", None),
        ("by hand", None, "by hand"),
        ("SIGTERM", "job 7", None),
        ("SIGTERM", None, None),
    ],
)
def test_what_a_person_asks_between_two_starts_of_a_job_holds(
    asked_by: str, token: str | None, asked: str | None, tmp_path: Path
) -> None:
    job = JobStart("7", None, 1)
    assert stop_asked_by_a_person(tmp_path, job) is None
    write_stop_file(tmp_path, asked_by, token)
    assert stop_asked_by_a_person(tmp_path, job) == asked
    _withdraw_stop(tmp_path, job)
    assert (tmp_path / "STOP").exists() == (asked is not None)
    _withdraw_stop(tmp_path, job, heeded=True)
    assert not (tmp_path / "STOP").exists()


@pytest.mark.parametrize(
    ("attempts", "stop", "cause", "requeued"),
    [
        ("", None, "preempted", True),  # asked by a signal before the first attempt: a node says 0 for 75
        ("", "launch stop", "stopped", False),
        ('{"event": "start", "time": "2026-01-01T00:00:01+00:00"}\n', None, "preempted", True),
        (
            '{"event": "start", "time": "2027"}\n{"event": "end", "time": "2027", "status": "completed"}\n',
            None,
            "completed",
            False,
        ),
    ],
)
def test_a_job_whose_nodes_say_zero_is_complete_only_where_its_attempt_is(
    attempts: str, stop: str | None, cause: Cause, requeued: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.slurm.queue.job_states", lambda jobs: {})
    monkeypatch.setattr("launch.slurm.queue.down_nodes", lambda nodes: [])
    (tmp_path / "attempts.jsonl").write_text(attempts)
    if stop:
        write_stop_file(tmp_path, stop, "job 7")
    begun = {"event": "begin", "job_id": "7", "restart": 0, "time": "2026-01-01T00:00:00+00:00"}
    evidence = gather(tmp_path, JobStart("7", None, 0), [begun], exit_code=0, signal=None, srun_said="")
    decision = decide_requeue(evidence, [], max_failures=3)
    assert (decision.cause, decision.requeue) == (cause, requeued)
