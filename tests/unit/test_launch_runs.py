"""Runs are made of real files; a running one is a process that really holds the lock."""

import json
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from locks import holding_lock, owning

from launch.runs.control import ask_to_stop, kill_run, log_chunks
from launch.runs.show import run_details, runs_table
from trainlib.errors import UserError
from trainlib.runs.attempt.owner import read_owner
from trainlib.runs.attempt.status import all_runs, find_run, is_running, read_run
from trainlib.runs.files.json_records import read_json

START = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def start(attempt: int, moment: datetime, **more: Any) -> dict[str, Any]:
    record = {"event": "start", "attempt": attempt, "time": moment.isoformat(), "host": "node1", "pid": 17}
    return record | {"world_size": 2, "from_step": 0, "slurm_job_id": None} | more


def end(attempt: int, moment: datetime, status: str, reason: str | None = None) -> dict[str, Any]:
    record = {"event": "end", "attempt": attempt, "time": moment.isoformat(), "status": status, "step": 20}
    return record | {"reason": reason}


def metrics(step: int, split: str, accuracy: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step // 10, "split": split, "loss": 0.5, "accuracy": accuracy, "count": 100} | more


def local(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def make_run(directory: Path, attempts: list[Any], lines: list[Any] = (), log: str = "") -> Path:  # type: ignore[assignment]
    (directory / "logs").mkdir(parents=True)
    (directory / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in attempts))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "logs" / "rank-0.log").write_text(log)
    (directory / "lock").touch()
    return directory


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([], "new"),
        ([start(1, START)], "interrupted"),
        ([start(1, START), end(1, START, "completed")], "completed"),
        ([start(1, START), end(1, START, "stopped")], "stopped"),
        ([start(1, START), end(1, START, "failed", "loss is nan")], "failed"),
        ([start(1, START), end(1, START, "stopped"), start(2, START)], "interrupted"),
    ],
)
def test_status_is_read_from_the_attempts(attempts: list[Any], expected: str, tmp_path: Path) -> None:
    assert read_run(make_run(tmp_path / "x", attempts)).status == expected


def test_a_run_that_was_killed_after_its_summary_is_completed(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [start(1, START)])
    (directory / "summary.json").write_text('{"status": "completed"}')
    assert read_run(directory).status == "completed"


def test_running_is_who_owns_the_run(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [start(1, START)])
    with owning(directory):
        assert is_running(directory)
        assert read_run(directory).status == "running"
        assert read_run(directory).seconds(START + timedelta(seconds=90)) == 90
    assert not is_running(directory)


@pytest.mark.parametrize("kind", ["LOCK_SH", "LOCK_EX"])
def test_who_only_holds_the_lock_does_not_run(tmp_path: Path, kind: str) -> None:
    directory = make_run(tmp_path / "x", [start(1, START), end(1, START, "completed")])
    with holding_lock(directory, kind):
        assert not is_running(directory)
        assert read_run(directory).status == "completed"


def test_asking_leaves_the_lock_free(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [])
    assert not is_running(directory)
    assert sorted(path.name for path in directory.iterdir()) == ["attempts.jsonl", "lock", "logs", "metrics.jsonl"]
    with owning(directory):  # would wait for ever if it were not free
        pass


def test_list_is_a_table_with_the_newest_last(tmp_path: Path) -> None:
    minute = timedelta(minutes=1)
    make_run(
        tmp_path / "older",
        [start(1, START), end(1, START + minute, "completed")],
        [metrics(10, "train", 0.5, scope="epoch"), metrics(20, "val", 0.75), metrics(20, "test", 0.8125)],
    )
    make_run(tmp_path / "a-newer-one", [start(1, START + minute)], [metrics(10, "val", 0.5)])
    make_run(tmp_path / "never-started", [])
    (tmp_path / "not-a-run").mkdir()
    first, second = local(START), local(START + minute)
    assert str(runs_table(all_runs(tmp_path), START)) == (
        f"NAME           STATUS       STEP  EPOCH  ACCURACY     STARTED              SECONDS\n"
        f"never-started  new\n"
        f"older          completed      20      2  test 0.8125  {first}       60\n"
        f"a-newer-one    interrupted    10      1  val 0.5000   {second}"
    )


def test_status_tells_all(tmp_path: Path) -> None:
    second = timedelta(seconds=1)
    failed = end(1, START + 7 * second, "failed", "loss is nan at step 20 on rank 1")
    directory = make_run(
        tmp_path / "x",
        [start(1, START), failed, start(2, START + 9 * second, from_step=10, slurm_job_id="42")],
        [metrics(9, "train", 0.25, scope="step"), metrics(10, "train", 0.5, scope="epoch"), metrics(10, "val", 0.75)],
    )
    (directory / "checkpoints" / "step-00000010").mkdir(parents=True)
    times = [local(START + seconds * second) for seconds in (0, 7, 9)]
    assert run_details(read_run(directory), START) == (
        "run:         x\n"
        "status:      interrupted: the process was killed or the machine went down (no reason was recorded); "
        "start it again to continue\n"
        "progress:    step 10, epoch 1\n"
        "train:       loss 0.5000, accuracy 0.5000, at step 10, over 100 samples\n"
        "val:         loss 0.5000, accuracy 0.7500, at step 10, over 100 samples\n"
        "last error:  loss is nan at step 20 on rank 1\n"
        "checkpoints: step-00000010\n"
        f"directory:   {directory}\n"
        "attempts:\n"
        f"  1  {times[0]}  started at step 0, 2 ranks, node1, process 17\n"
        f"  1  {times[1]}  failed at step 20: loss is nan at step 20 on rank 1\n"
        f"  2  {times[2]}  started at step 10, 2 ranks, node1, SLURM job 42"
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("train: {epochs: 20, steps: null}", "step 50, epoch 5 of 20"),
        ("train: {epochs: null, steps: 1000}", "step 50 of 1000, epoch 5"),
        ("train: [", "step 50, epoch 5"),  # damaged
        ("train: 20", "step 50, epoch 5"),
        (None, "step 50, epoch 5"),
    ],
)
def test_progress_has_the_total_that_the_configuration_tells(config: str | None, expected: str, tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [start(1, START)], [metrics(50, "val", 0.5)])
    if config is not None:
        (directory / "config.yaml").write_text(config)
    assert f"\nprogress:    {expected}\n" in run_details(read_run(directory), START)


def test_checkpoints_are_those_to_resume_from(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [])
    for step in ("00000020", "00000010", "00000030.damaged", "00000040.superseded", "00000050.damaged-2", "new"):
        (directory / "checkpoints" / f"step-{step}").mkdir(parents=True)
    assert "\ncheckpoints: step-00000010, step-00000020\n" in run_details(read_run(directory), START)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [start(1, START)], [metrics(10, "val", 0.5)])
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "split": "val", "accu')
    assert read_run(directory).newest_metrics["step"] == 10


def test_a_run_is_found_by_name_or_path(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "cifar10-cnn", [])
    assert find_run("cifar10-cnn", tmp_path) == directory
    assert find_run(str(directory), tmp_path / "elsewhere") == directory
    with pytest.raises(UserError, match=r"no run 'cifar-cnn' .*did you mean cifar10-cnn\?"):
        find_run("cifar-cnn", tmp_path)
    with pytest.raises(UserError, match=r"there are no runs in .*launch run CONFIG"):
        find_run("x", tmp_path / "empty")


def test_logs_of_a_rank(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [], log="one\ntwo\n")
    assert "".join(log_chunks(directory, 0, follow=False)) == "one\ntwo\n"
    with pytest.raises(UserError, match=r"rank-3\.log: No such file or directory; there are rank-0\.log"):
        list(log_chunks(directory, 3, follow=False))


def test_following_a_log_ends_with_the_run(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [], log="one\n")
    with owning(directory) as process:

        def write_and_end() -> None:
            time.sleep(0.3)
            with (directory / "logs" / "rank-0.log").open("a") as file:
                file.write("two\n")
            process.kill()

        writer = threading.Thread(target=write_and_end)
        writer.start()
        assert "".join(log_chunks(directory, 0, follow=True)) == "one\ntwo\n"
        writer.join()


def test_stop_writes_the_stop_file_of_a_running_run(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [start(1, START)])
    with owning(directory):
        assert "exit code 75" in ask_to_stop(directory)
        owner = read_owner(directory)
        assert owner is not None
    assert (directory / "STOP").read_text() == f"launch stop\nfor {owner.id}\n"


@pytest.mark.parametrize("act", [ask_to_stop, kill_run])
def test_a_run_that_is_over_is_left_alone(act: Any, tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [start(1, START)])
    with pytest.raises(UserError, match="x is not running"):
        act(directory)
    assert not (directory / "STOP").exists()


def test_cancel_kills_the_training(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [])
    with owning(directory, "-m", "trainlib.train") as process:
        assert "killed x" in kill_run(directory)
        assert process.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize(("host", "message"), [(None, "is not a training"), ("node1", "runs on node1")])
def test_cancel_kills_nothing_else(host: str | None, message: str, tmp_path: Path) -> None:
    directory = make_run(tmp_path / "x", [])
    with owning(directory, "unrelated") as process:
        owner = read_json(directory / "owner.json")
        if host is not None:
            (directory / "owner.json").write_text(json.dumps(owner | {"host": host, "machine": host}))
        with pytest.raises(UserError, match=message):
            kill_run(directory)
        assert process.poll() is None


def test_status_fits_a_terminal(tmp_path: Path) -> None:
    """Further lines begin where the first one's text does; no word is broken."""
    failed = end(1, START, "failed", "loss is nan at step 20 on rank 1")
    run = read_run(make_run(tmp_path / "x", [start(1, START), failed]))
    lines = run_details(run, START, width=50).splitlines()
    assert [line for line in lines if not line.startswith("directory:")] == [
        "run:         x",
        "status:      failed",
        "last error:  loss is nan at step 20 on rank 1",
        "seconds:     0",
        "attempts:",
        f"  1  {local(START)}  started at step 0, 2",
        f"{'':26}ranks, node1, process 17",
        f"  1  {local(START)}  failed at step 20: loss",
        f"{'':26}is nan at step 20 on",
        f"{'':26}rank 1",
    ]
    assert f"directory:   {run.directory}" in lines
