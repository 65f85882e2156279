"""What a list of runs reads, what a log shows of its end, and jobs that ended before anything of ours began."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.runs.control import log_chunks
from launch.runs.show import run_details, runs_table
from launch.slurm.queue import JobState
from trainlib.runs.attempt.status import all_runs, read_run
from trainlib.runs.files.json_records import parse_record

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def metrics(step: int, split: str, accuracy: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step // 10, "split": split, "loss": 0.5, "accuracy": accuracy, "count": 100} | more


def make_run(directory: Path, *, rows: Sequence[dict[str, Any]] = (), log: str = "") -> Path:
    (directory / "logs").mkdir(parents=True)
    (directory / "config.yaml").write_text("seed: 0\n")
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    (directory / "logs" / "rank-0.log").write_text(log)
    return directory


@pytest.mark.parametrize(
    ("jobs", "log", "status"),
    [
        ({}, "x/logs/slurm-7_2.out", "failed"),
        ({}, "sweep/submission-1/logs/slurm-7_2.out", "failed"),
        ({}, "x/logs/slurm-8.out", "new"),  # of another job: this one was cancelled in the queue
        (None, "x/logs/slurm-7_2.out", "submitted"),  # nobody knows if it is over
    ],
)
def test_a_job_that_ends_before_python_begins_has_failed(
    jobs: dict[str, Any] | None, log: str, status: str, tmp_path: Path
) -> None:
    """A module that is missing, an environment that is not on the node: nothing of ours could say so."""
    run = make_run(tmp_path / "x")
    (run / "jobs.jsonl").write_text(json.dumps({"event": "submitted", "job_id": "7", "array_task": 2}) + "\n")
    (tmp_path / log).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / log).write_text("one\ntwo\nmodule: command not found\n")
    found = read_run(run)
    text = run_details(found, NOW, jobs)
    assert f"status:      {status}\n" in text
    assert f"     {status}" in str(runs_table([found], NOW, jobs))
    said = f"job 7_2 ended before the training began; the last lines of {tmp_path / log}: one | two | module: command"
    assert (said in text) == (status == "failed")


@pytest.mark.parametrize(
    ("state", "reason", "word", "said"),
    [
        ("NODE_FAIL", "NodeDown", "failed", "job 7 ended before the training began, without a log: node_fail"),
        ("FAILED", "NonZeroExitCode", "failed", "without a log: failed on n0, and SLURM says NonZeroExitCode"),
        ("CANCELLED", "", "new", "it was cancelled while it waited, or its node could not start it"),
        ("PENDING", "launch failed requeued held", "requeued", "scontrol release 7 tries again, launch cancel x takes"),
        (None, "", "new", "sacct -j 7 tells"),
    ],
)
def test_a_job_that_no_node_could_start_leaves_no_log(
    state: str | None, reason: str, word: str, said: str, tmp_path: Path
) -> None:
    """As where a prolog fails: the queue knows it for some minutes."""
    run = make_run(tmp_path / "x")
    (run / "jobs.jsonl").write_text(json.dumps({"event": "submitted", "job_id": "7"}) + "\n")
    job = JobState("7", state or "", reason, int(word == "requeued"), None, None, "n0", 1)
    jobs = {"7": job} if state else {}
    text = run_details(read_run(run), NOW, jobs)
    assert f"status:      {word}" in text
    assert said in text
    assert f"     {word}" in str(runs_table([read_run(run)], NOW, jobs))


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x", log="".join(f"line {i}\n" for i in range(50)))
    assert "".join(log_chunks(run, 0, follow=False, lines=2)) == "line 48\nline 49\n"
    assert "".join(log_chunks(run, 0, follow=False, lines=0)) == ""
    assert len("".join(log_chunks(run, 0, follow=False, lines=99)).splitlines()) == 50


def test_the_last_lines_of_an_attempt(tmp_path: Path) -> None:
    log = "=== attempt 1\na\nb\n=== attempt 2\nc\nd\n"
    run = make_run(tmp_path / "x", log=log)
    assert "".join(log_chunks(run, 0, follow=False, attempt=1, lines=1)) == "b\n"


@pytest.mark.parametrize("evaluated", [3, 990])
def test_a_list_reads_ends_of_files(evaluated: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand rows a list parses the newest, and the newest evaluation, however far back that is."""
    rows = [metrics(step, "train", 0.5, scope="step") for step in range(1000)]
    rows[evaluated:evaluated] = [metrics(evaluated, "train", 0.5, scope="epoch"), metrics(evaluated, "val", 0.7)]
    make_run(tmp_path / "x", rows=rows)
    parsed: list[bytes] = []
    original = parse_record

    def counted(content: bytes, fits: Any) -> Any:
        parsed.append(content)
        return original(content, fits)

    monkeypatch.setattr("trainlib.runs.attempt.status.parse_record", counted)
    [run] = all_runs(tmp_path)
    assert run.step == 999
    assert run.last["val", None]["accuracy"] == 0.7
    assert run.last["train", "epoch"]["step"] == evaluated
    assert len(parsed) < 10


def test_lists_and_states_as_json(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        make_run(workdir / "runs" / name, rows=[metrics(7, "val", 0.7)])
    assert main(["list", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["name"], line["status"], line["step"], line["val"]["accuracy"]) for line in lines] == [
        ("a", "new", 7, 0.7),
        ("b", "new", 7, 0.7),
    ]
    assert main(["status", "b", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole.items() >= lines[1].items()
    assert whole["attempts"] == whole["jobs"] == whole["checkpoints"] == []


def test_a_run_that_stopped_between_two_rows_has_the_step_of_its_end(tmp_path: Path) -> None:
    run = make_run(tmp_path / "x")
    lines: list[dict[str, Any]] = [{"event": "start", "attempt": 1}, {"event": "end", "status": "stopped", "step": 27}]
    (run / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_run(run).step == 27
    assert "stopped    27" in str(runs_table([read_run(run)], NOW, {}))


def test_logs_of_a_job_that_no_rank_has_begun_in_are_the_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs/x")
    (run / "logs/rank-0.log").unlink()
    (run / "jobs.jsonl").write_text(json.dumps({"event": "submitted", "job_id": "7"}) + "\n")
    (run / "logs/slurm-7.out").write_text("module: command not found\n")
    assert main(["logs", "x"]) == 0
    said = capsys.readouterr()
    assert said.out == "module: command not found\n"
    assert said.err == "note: no rank has begun; this is what job 7 printed\n"
