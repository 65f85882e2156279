"""Runs that SLURM has in its queue, as list, status, logs, stop and cancel show and steer them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from patience import wait_until
from slurm_cluster import Cluster

from launch.cli import main
from launch.runs import control
from launch.runs.control import log_chunks
from launch.runs.show import run_details, runs_table
from launch.slurm.follow import state_text
from launch.slurm.queue import JobState
from trainlib.errors import UserError
from trainlib.runs.attempt.status import read_run
from trainlib.runs.files.json_records import read_lines
from trainlib.runs.records.failure_record import FailureRecord, save
from trainlib.runs.records.jobs import open_jobs

START = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def local(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def line(event: str, job_id: str = "12", seconds: int = 0, **more: Any) -> dict[str, Any]:
    moment = (START + timedelta(seconds=seconds)).isoformat()
    return {"event": event, "time": moment, "job_id": job_id, "array_task": None} | more


def ended(seconds: int, cause: str, **more: Any) -> dict[str, Any]:
    """As a job writes it."""
    nothing = dict.fromkeys(("signal", "step", "rank", "host", "log", "error"))
    return (
        line("end", "12", seconds, cause=cause, restart=0, exit_code=75, requeued=False, excluded=[], **nothing) | more
    )


def make_run(directory: Path, jobs: list[dict[str, Any]], attempts: list[dict[str, Any]] = []) -> Path:  # noqa: B006
    (directory / "logs").mkdir(parents=True)
    (directory / "config.yaml").write_text("train: {epochs: 3}\n")
    for name, records in (("jobs", jobs), ("attempts", attempts)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return directory


def job(state: str, job_id: str = "12", reason: str = "", restarts: int = 0, **more: Any) -> JobState:
    facts = {"start": None, "end": None, "nodes": "", "exit_code": 0} | more
    return JobState(job_id=job_id, state=state, reason=reason, restarts=restarts, **facts)


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([], []),
        ([line("submitted")], ["12"]),
        ([line("submitted"), line("begin"), ended(1, "preempted", requeued=True)], ["12"]),
        ([line("submitted"), line("begin"), ended(1, "completed")], []),
        ([ended(1, "failure"), line("begin")], ["12"]),
        ([line("submitted", "9"), line("begin"), ended(1, "completed")], ["9"]),
        (
            [line("submitted", array_task=1), line("submitted", array_task=2), ended(1, "stopped", array_task=1)],
            ["12_2"],
        ),
    ],
)
def test_jobs_that_the_ledger_leaves_open(jobs: list[dict[str, Any]], expected: list[str]) -> None:
    assert open_jobs(jobs) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (job("PENDING", reason="Resources"), "pending (Resources)"),
        (
            job("PENDING", reason="Priority", start=START.timestamp(), restarts=2),
            f"pending (Priority), expected to start at {local(START)}, requeued 2 times",
        ),
        (job("RUNNING", nodes="n[0-1]", start=START.timestamp(), restarts=1), "running on n[0-1], requeued 1 time"),
    ],
)
def test_a_job_in_words(state: JobState, expected: str) -> None:
    assert state_text(state) == expected


def test_list_shows_what_the_queue_says(tmp_path: Path) -> None:
    """One run in each state; without an answer of the queue, what the files say."""
    runs = [read_run(make_run(tmp_path / name, [line("submitted", job_id)])) for name, job_id in zip("abcde", "12345")]  # noqa: B905
    states = [
        job("PENDING", "1", "Priority"),
        job("PENDING", "2", "BeginTime", restarts=1),
        job("RUNNING", "3"),
        job("COMPLETING", "4"),
    ]
    table = str(runs_table(runs, START, {state.job_id: state for state in states}))
    assert [row.split(maxsplit=1) for row in table.splitlines()[1:]] == [
        ["a", "pending (Priority)"],
        ["b", "requeued (BeginTime)"],
        ["c", "running"],
        ["d", "completing"],
        ["e", "new"],  # cancelled by other means before it began
    ]
    assert [row.split()[1] for row in str(runs_table(runs, START)).splitlines()[1:]] == ["submitted"] * 5


def test_status_tells_of_jobs_and_their_ends(tmp_path: Path) -> None:
    failure = {"rank": 1, "host": "n1", "exit_code": 7, "log": "runs/x/logs/rank-1.log", "error": "ValueError: no"}
    jobs = [
        line("submitted"),
        line("begin", seconds=10, restart=0, nodes=["n0", "n1"]),
        ended(20, "preempted", signal="SIGUSR2", step=40, requeued=True),
        line("begin", seconds=30, restart=1, nodes=["n0", "n1"]),
        ended(40, "failure", step=55, requeued=True, **failure),
        line("begin", seconds=50, restart=2, nodes=["n2", "n0"]),
        ended(60, "node_failure", step=60, requeued=True, excluded=["n2"]),
    ]
    run = read_run(make_run(tmp_path / "x", jobs))
    times = [local(START + timedelta(seconds=seconds)) for seconds in range(0, 70, 10)]
    waiting = job("PENDING", reason="Resources", start=START.timestamp(), restarts=3)
    assert run_details(run, START, {"12": waiting}) == (
        "run:         x\n"
        "status:      requeued (Resources)\n"
        f"job:         12, pending (Resources), expected to start at {times[0]}, requeued 3 times\n"
        "last error:  rank 1 on n1: exit code 7 (log: runs/x/logs/rank-1.log): ValueError: no\n"
        f"directory:   {run.directory}\n"
        "jobs:\n"
        f"  12  {times[0]}  submitted\n"
        f"  12  {times[1]}  begun on n0 n1\n"
        f"  12  {times[2]}  preempted (SIGUSR2) at step 40; requeued\n"
        f"  12  {times[3]}  begun on n0 n1, restart 1\n"
        f"  12  {times[4]}  failure at step 55: rank 1 on n1: exit code 7 (log: runs/x/logs/rank-1.log): ValueError: no"
        "; requeued\n"
        f"  12  {times[5]}  begun on n2 n0, restart 2\n"
        f"  12  {times[6]}  node failure at step 60; requeued without n2"
    )


def test_status_names_the_rank_that_failed_without_a_queue_too(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [])
    save(directory, 0, FailureRecord(START.isoformat(), 2, "here", 137, "SIGKILL", "runs/x/logs/rank-2.log", ""))
    assert "\nlast error:  rank 2 on here: was killed by SIGKILL (log: runs/x/logs/rank-2.log)\n" in run_details(
        read_run(directory), START
    )


LOG = """\
=== attempt 1, job 12 restart 0 ===
one
=== attempt 2, job 12 restart 1 ===
two
not a heading: === attempt 1
=== attempt 10, job 13 restart 0 ===
ten, and no line's end"""


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (1, LOG.splitlines(keepends=True)[:2]),
        (2, LOG.splitlines(keepends=True)[2:5]),
        (10, LOG.splitlines(keepends=True)[5:]),
    ],
)
def test_the_log_of_one_attempt(
    attempt: int, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the pieces in which the file is read are cut."""
    directory = make_run(tmp_path / "x", [])
    (directory / "logs" / "rank-0.log").write_text(LOG)
    for size in (3, 20, 1 << 20):
        monkeypatch.setattr(control, "_CHUNK_CHARACTERS", size)
        assert "".join(log_chunks(directory, 0, follow=False, attempt=attempt)) == "".join(expected)
    with pytest.raises(UserError, match=r"no attempt 3 in .*rank-0\.log: it holds attempts 1, 2, 10"):
        list(log_chunks(directory, 0, follow=False, attempt=3))


@pytest.fixture
def slurm(cluster: Cluster, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    return cluster


def sbatch(cluster: Cluster, script: str, *options: str) -> str:
    """The id of a job of a few lines of bash."""
    return cluster.run(["sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}"]).strip()


@pytest.mark.parametrize("command", ["stop", "cancel"])
def test_a_job_that_waits_is_shown_and_ended(slurm: Cluster, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Once it is cancelled, the queue is asked no more."""
    job_id = sbatch(slurm, "sleep 100", "--hold")
    make_run(Path("runs/x"), [line("submitted", job_id)])
    assert main(["list"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "x     pending (JobHeldUser)"
    assert main(["status", "x"]) == 0
    assert f"\njob:         {job_id}, pending (JobHeldUser)\n" in capsys.readouterr().out
    assert main([command, "x"]) == 0
    assert not Path("runs/x/STOP").exists()
    assert capsys.readouterr().out.startswith(f"cancelled job {job_id} of x, which was pending")
    assert slurm.job(job_id)["JobState"] == "CANCELLED"
    assert open_jobs(read_lines(Path("runs/x/jobs.jsonl"))) == []
    assert main([command, "x"]) == 2
    assert "x is not running" in capsys.readouterr().err


def test_one_element_of_an_array_is_cancelled_alone(slurm: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    array = sbatch(slurm, "sleep 100", "--array=0-2", "--hold")
    for element in range(3):
        make_run(Path(f"runs/x{element}"), [line("submitted", array, array_task=element)])
    assert main(["cancel", "x1"]) == 0
    assert f"cancelled job {array}_1 of x1" in capsys.readouterr().out
    waiting = slurm.run(["squeue", "-h", "-r", "-j", array, "-o", "%i"]).split()
    assert waiting == [f"{array}_0", f"{array}_2"]
    slurm.run(["scancel", array])


def test_a_running_job_is_asked_to_stop_by_the_stop_file(slurm: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """And cancelled by scancel, though it holds no lock that could be seen from here."""
    job_id = sbatch(slurm, "sleep 100")
    make_run(Path("runs/x"), [line("submitted", job_id)])
    wait_until(lambda: slurm.job(job_id)["JobState"] == "RUNNING")
    assert main(["stop", "x"]) == 0
    assert Path("runs/x/STOP").read_text() == "launch stop\n"
    assert main(["list"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "x     running"
    assert main(["cancel", "x"]) == 0
    assert f"cancelled job {job_id} of x, which was running" in capsys.readouterr().out


def test_a_log_is_followed_across_a_requeue(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """From before the job has begun to its end in its second start."""
    monkeypatch.setattr(control, "_QUEUE_SECONDS", 0.5)
    script = """
        if [ -z "$SLURM_RESTART_COUNT" ]; then
            echo first >> runs/x/logs/rank-0.log
            scontrol requeue $SLURM_JOB_ID
            sleep 60
        fi
        sleep 1
        echo second >> runs/x/logs/rank-0.log
    """
    Path("runs/x/logs").mkdir(parents=True)
    job_id = sbatch(slurm, script, "--requeue")
    Path("runs/x/jobs.jsonl").write_text(json.dumps(line("submitted", job_id)) + "\n")

    def start_again() -> None:
        while (found := slurm.job(job_id))["JobState"] != "PENDING" or found["Restarts"] == "0":
            time.sleep(0.2)
        slurm.run(["scontrol", "update", f"JobId={job_id}", "StartTime=now+5"])  # SLURM would wait two minutes

    with ThreadPoolExecutor() as pool:
        hastened = pool.submit(start_again)
        assert "".join(log_chunks(Path("runs/x"), 0, follow=True)) == "first\nsecond\n"
        hastened.result()


def test_without_an_answer_of_the_queue_the_files_are_shown(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a note of one line; a run that has no open job is shown without asking."""
    program = workdir / "squeue"
    program.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(workdir))
    make_run(Path("runs/done"), [line("submitted"), ended(1, "completed")])
    assert main(["list"]) == 0
    assert capsys.readouterr().err == ""
    make_run(Path("runs/x"), [line("submitted")])
    assert main(["list"]) == 0
    captured = capsys.readouterr()
    assert captured.err == (
        "note: squeue -h failed: slurm_load_jobs error: Unable to contact slurm controller; what follows is from the "
        "runs' files alone\n"
    )
    assert sorted(row.split() for row in captured.out.splitlines()[1:]) == [["done", "new"], ["x", "submitted"]]
    assert main(["cancel", "x"]) == 1
