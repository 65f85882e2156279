"""Each command that refuses leaves a run to the byte and to the times of its files, in whatever state that run is."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiers import slow_but
from trained import TRAINING

from launch.cli import main
from launch.slurm.submission.snapshot import take_snapshot
from launch.slurm.submission.undo import undone_on_failure
from trainlib.config import load_config
from trainlib.runs.attempt.secret import forget_unused, make_secret
from trainlib.runs.attempt.status import read_run
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import append_line, read_lines
from trainlib.training.programs.prepare import main as prepare

RUN = Path("runs/run")
DEAD = {"id": "x", "host": "here", "pid": 1, "machine": "elsewhere", "started": "1", "job": None}

FROM_STEP = ["--resume", "step-00000008"]


@pytest.fixture
def workdir(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained / "runs", tmp_path / "work/runs")
    (tmp_path / "work/images").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("trainlib.runs.attempt.owner.DEAD_SECONDS", 0.3)
    return tmp_path / "work"


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int] | None]:
    """Bytes, time and permissions of each file; None for folders, which a start's own file in them makes newer."""

    def of(path: Path) -> tuple[bytes, int, int] | None:
        return None if path.is_dir() else (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode)

    return {str(path.relative_to(folder)): of(path) for path in folder.rglob("*")}


def rewrite_end(status: str) -> None:
    """The same run as one that was stopped or failed."""
    lines = [
        line | ({"status": status} if line["event"] == "end" else {}) for line in read_lines(RUN / "attempts.jsonl")
    ]
    (RUN / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (RUN / "summary.json").write_text(json.dumps(json.loads((RUN / "summary.json").read_text()) | {"status": status}))


def killed() -> None:
    """The same run as one that was killed in its second attempt, on another machine, with all that it leaves."""
    append_line(RUN / "attempts.jsonl", {"event": "start", "attempt": 2, "time": "2026-01-01T00:00:00+00:00"})
    (RUN / "summary.json").unlink()
    (RUN / "owner.json").write_text(json.dumps(DEAD))
    (RUN / "progress.json").write_text('{"time": "2026-01-01T00:00:00+00:00", "phase": "training"}\n')
    (RUN / "STOP").write_text("launch stop\nfor y\n")
    os.utime(RUN / "owner.json", (1e9, 1e9))


STATES: dict[str, Callable[[], None]] = {
    "completed": lambda: None,
    "stopped": lambda: rewrite_end("stopped"),
    "failed": lambda: rewrite_end("failed"),
    "interrupted": killed,
}
REFUSED = [
    ["run", *TRAINING, "optimizer.lr=0.5", "--resume"],
    ["run", *TRAINING, "data={name: image_folder, root: nowhere}", "--fresh"],
    ["run", *TRAINING, "--resume", "step-00000099"],
    ["run", *TRAINING, "--code", "nowhere.py"],
    ["run", *TRAINING, "--nodes", "2"],
    ["eval", "run", "--data", "nowhere"],
    ["eval", "runs/run/checkpoints/step-00000099"],
    ["predict", "run", "nowhere.png"],
    ["export", "run", "--format", "safetensors", "--output", "nowhere/file"],
    ["export", "run", "--format", "safetensors", "--output", "runs/run/config.yaml"],
    ["verify", "run", "--processes", "1"],
    ["rm", "run"],
    ["rm", "--force", "run", "none"],
    ["prune", "run", "none"],
    ["stop", "run"],
    ["cancel", "run"],
    ["wandb-sync", "run"],
    ["submit", *TRAINING, "optimizer.lr=0.5"],
    ["init", "images"],
    ["logs", "run", "--attempt", "9"],
]


@pytest.mark.parametrize("state", slow_but(["completed", "interrupted"], [*STATES]))
def test_what_a_command_refuses_changes_nothing(
    workdir: Path, state: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    STATES[state]()
    (workdir / "images.yaml").write_text("seed: 1\n")
    monkeypatch.setenv("PATH", str(workdir))  # no sbatch
    before = snapshot(workdir)
    assert read_run(RUN).status == state
    for words in REFUSED:
        assert main(words) == 2, (words, capsys.readouterr())
        said = capsys.readouterr().err
        assert "Traceback" not in said
        after = snapshot(workdir)
        changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        assert not changed, (words, changed)
    assert read_run(RUN).status == state


@pytest.mark.parametrize("words", slow_but([FROM_STEP], [["--fresh"], FROM_STEP, ["train.epochs=3", "--resume"]]))
def test_what_was_prepared_for_a_job_that_is_refused_is_undone(workdir: Path, words: list[str]) -> None:
    """Of a run that was submitted before: its copy of the code, its jobs, a STOP file that nobody heeded."""
    (RUN / "code").mkdir()
    (RUN / "code/COMMIT").write_text("of the job before\n")
    (RUN / "STOP").write_text("launch stop\nfor y\n")
    append_line(RUN / "jobs.jsonl", {"event": "submitted", "job_id": "1"})
    before = snapshot(workdir)

    def submit(*, refused: bool) -> None:
        with undone_on_failure(RUN):
            assert prepare([*TRAINING, *words]) == 0
            take_snapshot(RUN)
            append_line(RUN / "jobs.jsonl", {"event": "submitted", "job_id": "2"})
            assert not (RUN / "summary.json").exists()
            if refused:  # or the next run of an array was
                raise OSError("sbatch")

    with pytest.raises(OSError, match="sbatch"):
        submit(refused=True)
    assert snapshot(workdir) == before
    submit(refused=False)
    assert not list(RUN.glob(".code*"))
    assert (RUN / "code/trainlib").is_dir()


def test_a_file_is_not_exported_where_its_description_cannot_be(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workdir / "model.safetensors").write_text("of before")
    (workdir / "model.safetensors.json").mkdir()
    export = ["export", "run", "--format", "safetensors", "--output", "model.safetensors", "--force"]
    assert main(export) == 2
    assert "model.safetensors.json is a folder" in capsys.readouterr().err
    assert (workdir / "model.safetensors").read_text() == "of before"


def test_a_start_beside_another_leaves_it_its_lock(workdir: Path) -> None:
    """Which the other one made a moment ago, while this one looked."""
    other = RunDirectory.open(load_config([*TRAINING, "name=new"]))
    refused = RunDirectory(other.path)
    refused._made = [other.path / "lock", other.path]
    refused.close()
    assert (other.path / "lock").exists()
    other.close()
    assert not other.path.exists()


def test_a_secret_that_was_made_for_a_refused_start_is_removed(workdir: Path) -> None:
    before = snapshot(workdir)
    assert make_secret(RUN)
    forget_unused(RUN, is_refused=True)
    assert snapshot(workdir) == before
    assert make_secret(RUN)
    assert not make_secret(RUN)  # not made by the second start
    forget_unused(RUN)
    assert (RUN / ".secret").exists()
