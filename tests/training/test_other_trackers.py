"""Trackers of Accelerate: every row of metrics.jsonl once, over kills and resumes; a failure harms nothing."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import accelerate.tracking
import pytest
import ranks
import tiny
from patience import HANG

from trainlib.config import load_config
from trainlib.errors import ConfigError
from trainlib.runs.records.rows import scalars
from trainlib.training.hooks.tracking.others import process
from trainlib.training.hooks.tracking.others.follower import Follower, flat
from trainlib.training.hooks.tracking.others.process import TrackerJob, TrackerProcess, _environment


class Recording(accelerate.tracking.GeneralTracker):  # type: ignore[misc]
    """A tracker of Accelerate's kind that keeps what it gets."""

    name = "trackio"
    requires_logging_directory = False
    logged: ClassVar[list[tuple[int, dict[str, float]]]] = []
    config: ClassVar[dict[str, Any]] = {}

    def __init__(self, project: str, **arguments: Any):
        super().__init__()
        self.arguments = arguments

    @property
    def tracker(self) -> object:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        Recording.config.update(values)

    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        Recording.logged.append((step or 0, values))


def row(step: int, split: str = "train") -> dict[str, Any]:
    scope = {"scope": "step"} if split == "train" else {}
    numbers = {"loss": 1.0 / step, "accuracy": 0.5, "count": 4, "lr": 0.1, "images_per_second": 9.0}
    return {"time": "t", "step": step, "epoch": 1, "split": split, **scope, **numbers}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackerJob:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "trackio", Recording)
    monkeypatch.setattr(Recording, "logged", [])
    monkeypatch.setattr(Recording, "config", {})
    made = TrackerJob(
        "trackio", str(tmp_path / "run"), "project", {"optimizer": {"lr": 0.1, "betas": [1, 2]}, "x": None}
    )
    made.folder.mkdir(parents=True)
    return made


def write(job: TrackerJob, rows: list[dict[str, Any]], checkpoint: int | None = None) -> None:
    (job.folder.parent / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    if checkpoint is not None:
        (job.folder.parent / "checkpoints" / f"step-{checkpoint:08d}").mkdir(parents=True)


def test_rows_are_logged_once_they_are_final(job: TrackerJob) -> None:
    """A row past the newest checkpoint may be made again; the attempt that makes it goes on where the last one was."""
    write(job, [row(1), row(2), row(3)], checkpoint=2)
    first = Follower(job)
    first.follow()
    assert [step for step, _ in Recording.logged] == [1, 2]
    assert Recording.config == {"optimizer.lr": 0.1, "optimizer.betas": "[1, 2]", "x": "null"}
    rows = [row(1), row(2), row(3) | {"loss": 7.0}, row(4), row(4, "test")]
    write(job, rows, checkpoint=4)
    second = Follower(replace(job, num_rows=2))  # of the next attempt
    second.follow()
    second.follow()
    assert [step for step, _ in Recording.logged] == [1, 2, 3, 4]
    second.follow(ended=True)
    assert Recording.logged == [(one["step"], scalars(one)) for one in rows]


def test_a_run_that_became_longer_goes_on(job: TrackerJob) -> None:
    """Its file is cut at the checkpoint, with the row of the shorter run's test, which was logged."""
    write(job, [row(1), row(2), row(2, "test")], checkpoint=2)
    Follower(job).follow(ended=True)
    write(job, [row(1), row(2), row(3)], checkpoint=3)  # before the follower has started
    longer = Follower(replace(job, num_rows=2))
    longer.follow()
    assert [step for step, _ in Recording.logged] == [1, 2, 2, 3]


def test_a_line_that_is_not_whole_yet_waits(job: TrackerJob) -> None:
    write(job, [row(1)], checkpoint=9)
    with (job.folder.parent / "metrics.jsonl").open("a") as file:
        file.write('{"time": "t", "st')
    follower = Follower(job)
    follower.follow()
    assert [step for step, _ in Recording.logged] == [1]


def test_a_tracker_that_is_not_installed_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    with caplog.at_level(logging.WARNING, "trainlib"):
        tracker = TrackerProcess(TrackerJob("aim", str(tmp_path / "run"), "p", {}))
        tracker.log(row(1))
        tracker.flush()
        tracker.close()
    (record,) = caplog.records
    assert "aim: the package is not installed (`pip install aim`); training goes on without it" in record.message


def test_a_tracker_that_is_late_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is killed then, which is no second thing to be told."""
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(process, "CLOSING_SECONDS", 0.0)
    with caplog.at_level(logging.WARNING, "trainlib"):
        tracker = TrackerProcess(TrackerJob("mlflow", str(tmp_path / "run"), "p", {}))
        tracker.close()
        tracker._listener.join(HANG)
    (record,) = caplog.records
    assert "mlflow: not everything was logged within 0 s" in record.message


def test_a_folder_that_leads_elsewhere_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run/trackers").symlink_to(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING, "trainlib"):
        TrackerProcess(TrackerJob("mlflow", str(tmp_path / "run"), "p", {})).close()
    assert "trackers is a link or no plain file" in caplog.text
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_process_is_no_rank_and_takes_no_gpu() -> None:
    found = _environment(
        {"RANK": "1", "MASTER_ADDR": "x", "ACCELERATE_MIXED_PRECISION": "bf16", "MLFLOW_TRACKING_URI": "u"}
    )
    assert {"RANK", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"}.isdisjoint(found)
    assert (found["MLFLOW_TRACKING_URI"], found["CUDA_VISIBLE_DEVICES"]) == ("u", "")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[wandb]", "which has a key of its own: tracking.wandb.mode"),
        ("[mlfow]", "must be a list of"),
        ("mlflow", "list"),
    ],
)
def test_other_names_are_refused(value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(["quickstart", f"tracking.trackers={value}"])


def test_values_are_flat() -> None:
    assert dict(flat({"a": {"b": 1, "c": {"d": None}}, "e": "x"})) == {"a.b": 1, "a.c.d": "null", "e": "x"}


def patient(variables: dict[str, str], words: list[str]) -> int:
    """The training program with these variables, which waits at its end until the tracker has everything."""
    os.environ |= variables
    ranks.replace(process, "CLOSING_SECONDS", HANG)
    return ranks.main(words)


@pytest.mark.slow
def test_rows_in_mlflow_are_those_of_the_run_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real MLflow with its file store, read through its own package: one run, every row once."""
    import mlflow

    store = f"file:{tmp_path / 'mlruns'}"
    variables = {"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_FILE_STORE": "true"}
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for the client below
    tiny.make_images(tmp_path / "images")
    more = ("tracking.trackers=[mlflow]", "tracking.wandb.mode=disabled")
    for epochs in (1, 2):
        words = [*tiny.arguments(tmp_path / "images", epochs, 2, *more), "--resume"]
        codes = ranks.run(patient, variables, words[: None if epochs == 2 else -1], world_size=1, cwd=tmp_path)
        assert codes == [0], ranks.console(tmp_path)
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("trainlaunch")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run"
    lines = [json.loads(line) for line in (tmp_path / "runs/run/metrics.jsonl").read_text().splitlines()]
    for name in ("train/loss_step", "val/accuracy", "test/loss"):
        expected = [(one["step"], scalars(one)[name]) for one in lines if name in scalars(one)]
        history = client.get_metric_history(found.info.run_id, name)
        of_test = name.startswith("test")  # the first, shorter run was tested, too
        assert [(one.step, one.value) for one in history][-1 if of_test else 0 :] == expected
    assert os.path.exists(tmp_path / "runs/run/trackers/mlflow.json")
