"""What of a run was sent to W&B is known from W&B's own records, whatever became of the files of the run meanwhile."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from wandb_files import of_run, row, write_log

from trainlib.errors import UserError
from trainlib.runs.records.rows import scalars
from trainlib.training.hooks.tracking.wandb import sync as program
from trainlib.training.hooks.tracking.wandb.foreign import own_environment
from trainlib.training.hooks.tracking.wandb.log import segments
from trainlib.training.hooks.tracking.wandb.process import WandbJob
from trainlib.training.hooks.tracking.wandb.run import WandbRun, make_marker, recorded_id, run_id, synced_marker

ROWS = [{"step": step, "epoch": 1, "split": "train", "scope": "step", "loss": 0.5} for step in range(6)]
FIRST, SECOND = "offline-run-20300101_010000-abc", "offline-run-20300101_020000-abc"


class Sent(list[str]):
    """What was sent, instead of to W&B: the folder of each log, or "asked" where the server was asked first."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    sent = Sent()

    def upload(segment: Path, name: str) -> None:
        sent.append(segment.parent.name)
        make_marker(synced_marker(segment))

    monkeypatch.setattr(program, "_log_in", lambda: None)
    monkeypatch.setattr(program, "_upload", upload)
    monkeypatch.setattr(program, "_send_missing_rows", lambda run: sent.append("asked"))
    return sent


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of six rows, tracked offline in two attempts."""
    run = tmp_path / "run"
    (run / "wandb").mkdir(parents=True)
    (run / "wandb/run-id").write_text("abc\n")
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in ROWS))
    for name, numbers in ((FIRST, range(3)), (SECOND, range(3, 6))):
        write_log(run / "wandb", name, of_run(5), *(row(number, **scalars(ROWS[number])) for number in numbers))
    return run


def log_of(run: Path, name: str) -> Path:
    return run / "wandb" / name / "run-abc.wandb"


def test_of_a_run_that_was_sent_in_part_the_rest_is_sent(run: Path, sent: Sent) -> None:
    """By hand with `wandb sync`, too, which leaves the same marker."""
    make_marker(synced_marker(log_of(run, FIRST)))
    assert "uploaded 1 attempt " in program.sync(run)
    assert sent == [SECOND]
    assert "W&B has everything" in program.sync(run)


def test_a_log_that_grew_after_it_was_sent_was_not_sent_whole(run: Path, sent: Sent) -> None:
    """As where somebody calls `wandb sync` while the run trains offline: the server is asked how far it is."""
    for name in (FIRST, SECOND):
        make_marker(synced_marker(log_of(run, name)))
    newer = synced_marker(log_of(run, SECOND)).stat().st_mtime_ns + 1_000_000
    os.utime(log_of(run, SECOND), ns=(newer, newer))
    program.sync(run)
    assert sent == ["asked"]


def test_a_lost_id_is_that_of_the_logs(run: Path, sent: Sent) -> None:
    (run / "wandb/run-id").unlink()
    assert run_id(run / "wandb") == "abc"
    assert "its id is abc" in program.sync(run)
    assert sent == [FIRST, SECOND]
    other = run / "wandb/offline-run-20300101_030000-xyz"
    write_log(run / "wandb", other.name, of_run(9, "xyz")).rename(other / "run-xyz.wandb")
    with pytest.raises(UserError, match=r"run-id is missing, and .* several runs \(abc, xyz\): write the id"):
        program.sync(run)


def test_without_the_folder_nothing_is_claimed(run: Path, sent: Sent) -> None:
    shutil.rmtree(run / "wandb")
    with pytest.raises(UserError, match="W&B has nothing of this run"):
        program.sync(run)
    assert recorded_id(run / "wandb") is None
    assert not (run / "wandb").exists()
    assert sent == []


@pytest.mark.parametrize("is_named_alike", [False, True])
def test_the_log_of_another_run_is_neither_counted_nor_sent(run: Path, sent: Sent, is_named_alike: bool) -> None:
    """Copied into the folder as it is, and under the name of this run."""
    shutil.rmtree(run / "wandb" / SECOND)
    values = [scalars(line) for line in ROWS[3:]]
    copied = write_log(
        run / "wandb",
        "offline-run-20300101_030000-xyz",
        of_run(9, "xyz"),
        *(row(3 + index, **each) for index, each in enumerate(values)),
    )
    if is_named_alike:
        copied.parent.rename(run / "wandb/offline-run-20300101_030000-abc")
    else:
        copied.rename(copied.with_name("run-xyz.wandb"))
    assert segments(run / "wandb", "abc") == [log_of(run, FIRST)]
    assert "and 3 rows that were not tracked" in program.sync(run)
    assert sent == ["asked"]


class Server:
    """W&B's library, as far as `WandbRun` uses it: a run of which the server has so many rows."""

    def __init__(self, starting_step: int):
        self.starting_step = starting_step
        self.rows: list[tuple[int, int]] = []

    def log(self, values: dict[str, Any], step: int, commit: bool) -> None:
        assert commit
        self.rows.append((step, values["step"]))

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("removed", "has", "logged"),
    [
        ([], 6, []),
        ([], 4, [4, 5]),
        ([FIRST], 6, []),  # sent, then removed
        ([FIRST], 3, [3, 4, 5]),
        ([FIRST], 0, [0, 1, 2, 3, 4, 5]),
        ([SECOND], 6, []),
        ([FIRST, SECOND], 6, []),
        ([FIRST, SECOND], 2, [2, 3, 4, 5]),
    ],
)
def test_what_the_server_has_is_not_sent_again_where_its_log_is_gone(
    run: Path, removed: list[str], has: int, logged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in removed:
        shutil.rmtree(run / "wandb" / name)
    server = Server(has)
    monkeypatch.setattr("wandb.init", lambda **settings: server)
    job = WandbJob(str(run), "run", "online", "p", None, None, False, os.getpid(), {})
    tracked = WandbRun(job)
    for line in ROWS + ROWS:
        tracked.log(line, scalars(line))
    assert server.rows == [(step, step) for step in logged]
    if not logged:
        assert tracked.missing() == 0


@pytest.mark.parametrize(
    ("name", "stays"),
    [
        *(
            (f"WANDB_{name}", True)
            for name in ("API_KEY", "BASE_URL", "ENTITY", "HTTP_PROXY", "TAGS", "X_STATS_GPU_TYPE")
        ),
        *((f"WANDB_{name}", False) for name in ("RUN_JOB_TYPE", "ROOT_DIR", "RESUMED", "REINIT", "JOB_NAME")),
        *((f"WANDB_{name}", False) for name in ("X_START_TIME", "_START_TIME", "X_FILES_DIR", "_SKIP_TRANSACTION_LOG")),
    ],
)
def test_settings_of_another_run_are_left_out(name: str, stays: bool) -> None:
    """As an agent, a notebook or another launcher may have set them for the process that it started."""
    assert (name in own_environment({name: "x"})) == stays
