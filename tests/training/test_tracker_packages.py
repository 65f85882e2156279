"""Trackers of Accelerate with their real packages: read through the package, the rows are those of the run.

MLflow is among the packages of the tests. Trackio and Aim want older versions of some of these: they are tested only in
an environment that has them (`pip install trackio aim`), and are no tests elsewhere.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import tiny
from patience import HANG, wait_until

from trainlib.runs.files.json_records import read_json, read_lines
from trainlib.runs.records.rows import Row, scalars
from trainlib.training.hooks.tracking.others import process

Histories = dict[str, list[tuple[int, float]]]
PROJECT = "trainlaunch"


def unhurried(variables: dict[str, str], words: list[str]) -> int:
    """The training program with these variables, which waits for its tracker: to start, and at the end."""
    os.environ |= variables

    def log(self: process.TrackerProcess, row: Row) -> None:
        wait_until((self._job.folder / f"{self._job.tracker}.json").exists)

    ranks.replace(process.TrackerProcess, "log", log)
    ranks.replace(process, "CLOSING_SECONDS", HANG)
    return ranks.main(words)


def of_mlflow(folder: Path) -> Histories:
    import mlflow

    client = mlflow.MlflowClient(f"file:{folder / 'mlruns'}")
    experiment = client.get_experiment_by_name(PROJECT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {name: [(one.step, one.value) for one in history] for name, history in histories.items()}


def of_trackio(folder: Path) -> Histories:
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs(PROJECT) == ["run"]
    found: Histories = {}
    for line in SQLiteStorage.get_logs(PROJECT, "run"):
        for name in line.keys() - {"step", "timestamp"}:
            found.setdefault(name, []).append((line["step"], line[name]))
    return found


def of_aim(folder: Path) -> Histories:
    """Runs are listed from an index, which Aim's server makes, or this command."""
    from aim import Repo

    store = folder / "runs/run/trackers"
    reindex = [str(Path(sys.executable).with_name("aim")), "storage", "--repo", str(store), "reindex", "--yes"]
    subprocess.run(reindex, check=True, capture_output=True)
    (run,) = Repo(str(store)).iter_runs()
    assert (run.name, run.experiment) == ("run", PROJECT)
    found: Histories = {}
    for metric in run.metrics():
        steps, (values, *_) = metric.data.items_list()
        if not metric.name.startswith("__system__"):
            found[metric.name] = list(zip(steps, values, strict=True))
    return found


READERS = {"mlflow": of_mlflow, "trackio": of_trackio, "aim": of_aim}
INSTALLED = [tracker for tracker in READERS if tracker == "mlflow" or importlib.util.find_spec(tracker)]


@pytest.mark.slow
@pytest.mark.parametrize("tracker", INSTALLED)
def test_rows_are_those_of_the_run_after_a_kill(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed past a checkpoint, once the tracker has some rows; each row is there once, and in one run."""
    variables = {
        "MLFLOW_TRACKING_URI": f"file:{tmp_path / 'mlruns'}",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tiny.make_images(tmp_path / "images")
    words = tiny.arguments(tmp_path / "images", 40, 6, f"tracking.trackers=[{tracker}]", "tracking.log_every=1")
    under_way = ranks.start(unhurried, variables, words, world_size=1, cwd=tmp_path)
    state = tmp_path / f"runs/run/trackers/{tracker}.json"
    wait_until(lambda: not under_way.running or read_json(state).get("rows", 0) > 0)
    under_way.signal(0, signal.SIGKILL)
    assert under_way.wait() == [-signal.SIGKILL], ranks.console(tmp_path)
    assert ranks.run(unhurried, variables, words, world_size=1, cwd=tmp_path) == [0], ranks.console(tmp_path)

    expected: Histories = {}
    for row in read_lines(tmp_path / "runs/run/metrics.jsonl"):
        for name, number in scalars(row).items():
            expected.setdefault(name, []).append((row["step"], number))
    assert READERS[tracker](tmp_path) == expected
