"""Weights & Biases shows exactly what metrics.jsonl holds, whatever happens to the training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ranks
import tiny
import wandb_files
import wandb_server
import yaml
from paths import REPOSITORY

pytestmark = pytest.mark.slow

EVERY = 4
SECRETS = {"WANDB_API_KEY": "canary" + 34 * "0", "SOME_TOKEN": "canary in a coal mine"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wandb") / "images"
    tiny.make_images(root)
    return root


def tracked(arguments: list[str]) -> int:
    """The training program with W&B, which the tests else leave out."""
    os.environ.pop("WANDB_MODE", None)
    os.environ |= SECRETS | {"WANDB__STATS_SAMPLING_INTERVAL": "0.1"}  # of seconds: the runs are short
    return ranks.main(arguments)


def followers(cwd: Path) -> list[psutil.Process]:
    """The processes that show the runs of a directory to W&B, and W&B's own."""
    running = psutil.process_iter(["cwd", "cmdline"])
    return [
        process
        for process in running
        if process.info["cwd"] == str(cwd) and "wandb" in " ".join(process.info["cmdline"] or [])
    ]


def test_killed_three_times_each_row_is_there_once(tmp_path: Path, images: Path) -> None:
    """In W&B's files on disk, all attempts together, and in TensorBoard's, exactly as in metrics.jsonl; one run id.

    The training is killed alone, then with the processes of W&B, then alone again. No secret is in any file.
    """
    training = tiny.arguments(images, 12, EVERY, "tracking={log_every: 1, tensorboard: true}")
    for number, kills_all in enumerate((False, True, False), 1):
        under_way = ranks.start(tracked, training, world_size=1, cwd=tmp_path)
        while (
            len(tiny.attempts(tmp_path, "start")) < number
            or tiny.last_step(tmp_path) < number * 2 * EVERY + number
            or not followers(tmp_path)
        ):
            assert under_way.running, ranks.console(tmp_path)
            time.sleep(0.005)
        under_way.signal(0, signal.SIGKILL)
        for process in followers(tmp_path) if kills_all else []:
            process.kill()
        assert under_way.wait() == [-signal.SIGKILL]
    assert ranks.run(tracked, training, world_size=1, cwd=tmp_path) == [0], ranks.console(tmp_path)
    run = tmp_path / "runs/run"
    assert [start["from_step"] > 0 for start in tiny.attempts(tmp_path, "start")] == [False, True, True, True]
    assert len(wandb_files.logs(run)) > 1
    wandb_files.assert_same_rows(run)
    wandb_files.assert_same_in_tensorboard(run)
    assert "could not be written" not in (run / "logs/rank-0.log").read_text()
    assert_no_secret(run)
    assert_described(run)


def assert_described(run: Path) -> None:
    """Every attempt with rows has configuration, environment and the axis of its charts; the last one the result."""
    described = {path: wandb_files.records(path) for path in wandb_files.logs(run)}
    described = {path: found for path, found in described.items() if any(r.HasField("history") for r in found)}
    assert wandb_files.logs(run)[-1] in described
    for records in described.values():
        begun = next(record.run for record in records if record.HasField("run"))
        assert (begun.project, begun.job_type, begun.run_id) == (
            "trainlaunch",
            "train",
            (run / "wandb/run-id").read_text().strip(),
        )
        config = {item.key: json.loads(item.value_json) for item in begun.config.update}
        saved = yaml.safe_load((run / "config.yaml").read_text())
        assert config["train"] == saved["train"]
        assert config["environment"]["versions"]["torch"]
        assert any(record.metric.step_metric == "step" for record in records if record.HasField("metric"))
    assert any(record.HasField("stats") for path in wandb_files.logs(run) for record in wandb_files.records(path))
    updates = [item for record in records if record.HasField("summary") for item in record.summary.update]
    summary = {item.key or "/".join(item.nested_key): item.value_json for item in updates}
    assert json.loads(summary["summary/status"]) == "completed"
    shown = {"/".join(item.nested_key).split("/_type")[0] for record in records for item in record.history.item}
    assert {"test/mistakes", "test/confusion_matrix_table"} <= shown
    assert len(list(run.glob("wandb/*/files/media/table/test/*.json"))) == 2


def assert_no_secret(run: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if b"canary" in path.read_bytes()] == []


def kill_online(cwd: Path, training: list[str], server: wandb_server.Server, rows: int) -> None:
    """Train online until the server has so many rows, then kill the training."""
    under_way = ranks.start(tracked_online, server.environment, training, world_size=1, cwd=cwd)
    while under_way.running and sum(map(len, map(server.history, server.runs))) < rows:
        time.sleep(0.01)
    under_way.signal(0, signal.SIGKILL)
    assert under_way.wait() == [-signal.SIGKILL]


def tracked_online(environment: dict[str, str], arguments: list[str]) -> int:
    os.environ.pop("WANDB_MODE", None)
    os.environ |= SECRETS | environment
    return ranks.main(arguments)


def sync(cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`launch wandb-sync run`."""
    path = {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "launch", "wandb-sync", "run"]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment | path, capture_output=True, text=True)


def assert_server_has_each_row_once(server: wandb_server.Server, cwd: Path) -> None:
    """Under one id; speed and time of a row that was made again after a kill are those of the first time."""
    assert len(server.runs) == 1

    def without_speed(row: dict[str, Any]) -> list[tuple[str, float]]:
        names = [name for name in row if "/" in name and "images" not in name]
        return sorted((name, row[name]) for name in names if isinstance(row[name], int | float))  # 1.0 is sent as 1

    found = [(row["step"], without_speed(row)) for row in server.history(*server.runs)]
    expected = [(step, without_speed(row)) for step, row in wandb_files.expected(cwd / "runs/run")]
    assert sorted(found) == sorted(expected)


def test_an_online_run_goes_on_after_kills(tmp_path: Path, images: Path) -> None:
    """And rows of an attempt without a server, in between, are there at the end, too. No secret is in any file."""
    tracking = "tracking={log_every: 4, wandb: {mode: online, entity: e}}"
    training = tiny.arguments(images, 1000, 40, tracking, "scheduler=null")
    with wandb_server.serving() as server:
        kill_online(tmp_path, training, server, 5)
        first = len(server.history(*server.runs))
        kill_online(tmp_path, training, server, first + 10)
        epochs = tiny.last_step(tmp_path) // tiny.STEPS_PER_EPOCH + 12
        short = [*training, f"train.epochs={epochs}", "--resume"]
        offline = {"WANDB_MODE": "offline"}
        assert ranks.run(tracked_online, offline, short, world_size=1, cwd=tmp_path) == [0], ranks.console(tmp_path)
        assert len(server.history(*server.runs)) < len(wandb_files.expected(tmp_path / "runs/run"))
        result = sync(tmp_path, server.environment)
        assert result.returncode == 0, result.stderr
        assert_server_has_each_row_once(server, tmp_path)
        assert "has everything" in sync(tmp_path, server.environment).stdout
    assert_no_secret(tmp_path / "runs/run")


def test_sync_uploads_the_attempts_of_an_offline_run(tmp_path: Path, images: Path) -> None:
    """In order, under one id, nothing lost or doubled: also when it is called again, and after one that was cut off.

    One log ends in the middle of a record, and one in its header, as after a kill.
    """
    training = tiny.arguments(images, 3, EVERY, "tracking={log_every: 1}", "scheduler=null")
    assert ranks.run(tracked, [*training, "train.steps=5", "train.epochs=null"], world_size=1, cwd=tmp_path) == [0]
    longer = [*training, "train.steps=8", "train.epochs=null", "--resume"]
    assert ranks.run(tracked, longer, world_size=1, cwd=tmp_path) == [0], ranks.console(tmp_path)
    run = tmp_path / "runs/run"
    first, second = wandb_files.logs(run)
    os.truncate(first, first.stat().st_size - 3)
    at_once = run / f"wandb/offline-run-20000101_000000-{first.stem.removeprefix('run-')}" / first.name
    at_once.parent.mkdir()
    at_once.write_bytes(first.read_bytes()[:7])
    refused = sync(tmp_path, {"HOME": str(tmp_path), "WANDB_API_KEY": ""})
    assert refused.returncode == 2
    assert "error: W&B: No API key configured" in refused.stderr
    assert "Traceback" not in refused.stderr
    with wandb_server.serving() as server:
        for _ in range(2):
            result = sync(tmp_path, server.environment)
            assert result.returncode == 0, result.stderr
            assert [row["_step"] for row in server.history(*server.runs)] == list(range(len(wandb_files.history(run))))
        assert not list(run.glob("wandb/run-2*")), "all of it came from the logs, system metrics included"
        second.with_name(f"{second.name}.synced").unlink()
        second.with_name(f"{second.name}.begun").touch()  # as after an upload that was cut off before its very end
        assert sync(tmp_path, server.environment).returncode == 0
        assert not (tmp_path / "wandb").exists()
        assert len(server.history(*server.runs)) == len(wandb_files.history(run))
