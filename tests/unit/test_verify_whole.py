"""`launch verify RUN`: from which checkpoint it begins; --whole: the same bits, or it is told what differs."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from paths import REPOSITORY

from launch.cli import main as launch
from launch.local.ranks import program
from launch.local.start.command import Command
from launch.runs.whole import compare, text_of, trained_again
from trainlib.config import dump_config, load_config
from trainlib.errors import UserError

ENVIRONMENT = {"versions": {"torch": "2.14"}, "num_threads": 1} | dict.fromkeys(
    ("code", "world_size", "device", "device_name", "cpu_capability", "kernel_variables"), 1
)


def run_directory(path: Path, *, digest: str = "a", rows: list[dict[str, Any]], **environment: Any) -> Path:
    checkpoint = path / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text(json.dumps({"data": {"listing": environment.pop("listing", "x")}}))
    (path / "summary.json").write_text(json.dumps({"status": "completed", "step": 2, "weights_sha256": digest}))
    (path / "environment.json").write_text(json.dumps(ENVIRONMENT | environment))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(loss: float, speed: float = 1.0) -> dict[str, Any]:
    return {"time": str(speed), "step": 2, "epoch": 1, "split": "val", "loss": loss, "images_per_second": speed}


def test_all_numbers_of_processes_begin_from_one_checkpoint(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run may be training: what is the newest for the first is not for the second."""
    (workdir / "runs/x").mkdir(parents=True)
    (workdir / "runs/x/config.yaml").write_text(dump_config(load_config(["quickstart", "name=x"])))
    named = list[list[str]]()

    def record(command: Command) -> None:
        words = command.words[command.words.index("trainlib.training.programs.verify") + 1 :]
        named.append(list(words[4:]))
        step = 5 if len(named) == 1 else int(words[-1].removeprefix("step-"))
        for rank in range(len(named)):
            line = {"from_step": step, "changed": []}
            Path(words[1], f"{len(named)}-{rank}.jsonl").write_text(json.dumps(line) + "\n")

    monkeypatch.setattr(program, "run_program", record)
    assert launch(["verify", "x"]) == 0
    assert named == [[], ["--checkpoint", "step-00000005"]]


def test_the_clock_is_not_compared(tmp_path: Path) -> None:
    then, now = (run_directory(tmp_path / str(k), rows=[row(1.0, k)]) for k in (1, 2))
    found = compare(then, now)
    assert (found.differences, found.environment) == ([], [])
    assert text_of(found, then) == "the same in every bit: weights a, and every reported figure"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"digest": "b"}, "weights_sha256 was a, is b"),
        ({"rows": [row(1.25)]}, "val/loss: by at most 0.25"),
        ({"rows": []}, "1 rows were reported, and 0 are"),
        ({"rows": [row(1.0) | {"accuracy": 0.5}]}, "val/accuracy: by at most inf"),  # which was not finite before
    ],
)
def test_what_differs_is_told(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    then = run_directory(tmp_path / "then", rows=[row(1.0)])
    now = run_directory(tmp_path / "now", **({"rows": [row(1.0)]} | change))
    said = text_of(compare(then, now), then)
    assert said.startswith("different: ")
    assert says in said
    assert "nothing is known to be other" in said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"versions": {"torch": "2.15"}}, "torch was 2.14, is 2.15"),
        ({"num_threads": 4}, "num_threads was 1, is 4"),
        ({"listing": "y"}, "data: listing was x, is y"),
    ],
)
def test_what_is_other_in_the_environment_is_told(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    then = run_directory(tmp_path / "then", rows=[row(1.0)])
    found = compare(then, run_directory(tmp_path / "now", rows=[row(1.0)], **change))
    assert any(says in phrase for phrase in found.environment)


def test_the_second_training_leaves_the_run_and_all_around_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror would bring the run itself back, to be compared with itself; trackers are told of one training only."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    run = run_directory(tmp_path / "runs/r", rows=[])
    text = "name: r\nmirror: s3://bucket/path\ntracking: {trackers: [mlflow]}\n"
    (run / "config.yaml").write_text(text)
    called: list[list[str]] = []

    def started(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        called.append(words)
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(subprocess, "run", started)
    with trained_again(run, []):
        config = load_config([word for word in called[0][4:] if word.endswith(".yaml") or "=" in word])
        assert (config.mirror, config.tracking.trackers) == (None, [])
    (run / "config.yaml").write_text(f"name: r\nmodel: {{weights: 'run:../../evil@{'0' * 64}'}}\n")
    with pytest.raises(UserError, match="what follows run:"), trained_again(run, []):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "tmp"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "3"], "takes no --steps"),
        (["--processes", "1,2"], "takes no --processes"),
        ([], "is not complete"),
    ],
)
def test_mistakes(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/r").mkdir(parents=True)
    (tmp_path / "runs/r/config.yaml").write_text("name: r\n")
    assert launch(["verify", "r", "--whole", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_trained_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same bits, and the run as it was; one row that was tampered with is noticed."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    run = Path("runs/run")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert launch(["verify", "run", "--whole"]) == 0
    assert "the same in every bit: weights " in capfd.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert [path.name for path in Path("runs").iterdir()] == ["run"]


def test_what_the_clock_decides_is_no_difference(tmp_path: Path) -> None:
    """A rank that was slow, the speed and the time; neither here nor between numbers of processes."""
    from trainlib.training.programs.verify import Recorder

    recorder = Recorder(tmp_path / "lines.jsonl")
    recorder.on_row({"step": 1, "split": "train", "loss": 2.0, "time": 3.0, "images_per_second": 4.0, "slow": "rank 1"})
    assert recorder._line == {"rows": [{"step": 1, "split": "train", "loss": 2.0}]}
