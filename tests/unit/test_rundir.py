"""The run directory: one writer, one configuration, an account of every attempt; small files that survive crashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TextIO

import pytest
from parts import resolved
from paths import REPOSITORY
from patience import HANG

from trainlib.config.load import refuse_renamed_run
from trainlib.errors import EXIT_USER_ERROR, ConfigError, RunDirectoryError, StoppedError
from trainlib.runs.attempt.record import Attempt, recorded_attempt
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files import locks
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.files.json_records import append_line, read_json, read_lines, read_yaml
from trainlib.runs.records.reasons import COMPLETED, END_TIME, EndReason
from trainlib.training.programs.prepare import main


def test_a_second_opener_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    config = resolved({"name": "run"})
    first = RunDirectory.open(config, runs=tmp_path)
    with pytest.raises(RunDirectoryError, match="in use"):
        RunDirectory.open(config, runs=tmp_path)
    first.close()
    RunDirectory.open(config, runs=tmp_path).close()


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    program = (
        "import os, signal; from pathlib import Path; from trainlib.config import load_config;"
        "from trainlib.runs.directory import RunDirectory;"
        f"RunDirectory.open(load_config(['quickstart', 'name=run']), runs=Path({str(tmp_path)!r}));"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=False)
    assert done.returncode == -9
    RunDirectory.open(resolved({"name": "run"}), runs=tmp_path).close()


def test_the_saved_configuration_opens_the_same_run(tmp_path: Path) -> None:
    from trainlib.config import read_resolved

    config = resolved({"name": "run", "optimizer": {"name": "AdamW", "lr": 1e-5}})
    run = RunDirectory.open(config, runs=tmp_path)
    run.begin(config)
    run.close()
    assert read_resolved(run.config_file) == config


def test_a_run_that_an_older_version_began_with_precision_no_goes_on(tmp_path: Path) -> None:
    config = resolved({"name": "run"})
    run = RunDirectory.open(config, runs=tmp_path)
    run.begin(config)
    run.close()
    text = run.config_file.read_text()
    assert "  precision: fp32\n" in text
    run.config_file.write_text(text.replace("precision: fp32", "precision: 'no'"))
    for precision in ("no", "fp32"):
        RunDirectory.open(resolved({"name": "run", "train.precision": precision}), runs=tmp_path).close()
    with pytest.raises(RunDirectoryError, match=r"train\.precision"):
        RunDirectory.open(resolved({"name": "run", "train.precision": "bf16"}), runs=tmp_path)


def test_fresh_keeps_the_old_run_aside(tmp_path: Path) -> None:
    config = resolved({"name": "run"})
    for number in (1, 2):
        run = RunDirectory.open(config, fresh=True, runs=tmp_path)
        run.begin(config)
        (run.path / "mark").write_text(str(number))
        run.close()
    run = RunDirectory.open(config, fresh=True, runs=tmp_path)
    assert (run.path / "mark").exists()  # until training begins, all stays as it was
    run.begin(config)
    run.close()
    assert [(tmp_path / f"run.old-{n}/mark").read_text() for n in (1, 2)] == ["1", "2"]
    assert not (tmp_path / "run/mark").exists()


def begun(tmp_path: Path) -> None:
    config = resolved({"name": "run"})
    run = RunDirectory.open(config, runs=tmp_path)
    run.begin(config)
    run.close()


@pytest.mark.parametrize(
    ("changes", "resume", "refused"),
    [
        ({"tracking": {"log_every": 7}}, None, True),
        ({"tracking": {"log_every": 7}}, "", False),
        ({"train": {"epochs": 99}}, "", False),
        ({"checkpoint": {"every": "9st"}}, "", False),
        ({"checkpoint": {"best": {"metric": "val/loss"}}}, "", True),
        ({"optimizer": {"name": "SGD", "lr": 0.5}}, "", True),
        ({"seed": 1}, "", True),
    ],
)
def test_changes_of_configuration(
    tmp_path: Path, changes: dict[str, object], resume: str | None, refused: bool
) -> None:
    begun(tmp_path)
    changed = resolved({"name": "run", **changes})
    if refused:
        with pytest.raises(RunDirectoryError, match="different configuration"):
            RunDirectory.open(changed, resume=resume, runs=tmp_path)
    else:
        RunDirectory.open(changed, resume=resume, runs=tmp_path).close()


def test_what_is_appended_does_not_appear_in_a_backup_of_hard_links(tmp_path: Path) -> None:
    """`cp -al runs/run backup`, and the run goes on."""
    config = resolved({"name": "run"})
    run = RunDirectory.open(config, runs=tmp_path)
    run.begin(config)
    (tmp_path / "backup").mkdir()
    for file in (run.metrics_file, run.attempts_file):
        append_line(file, {"step": 1})
        os.link(file, tmp_path / "backup" / file.name)
    run.close()
    run = RunDirectory.open(config, runs=tmp_path)
    run.claim()
    for file in (run.metrics_file, run.attempts_file):
        append_line(file, {"step": 2})
        assert read_lines(file) == [{"step": 1}, {"step": 2}]
        assert read_lines(tmp_path / "backup" / file.name) == [{"step": 1}]
    run.close()


def test_the_config_of_a_renamed_run_is_refused(tmp_path: Path) -> None:
    """It began anew, in a directory of the old name."""
    config = resolved({"name": "run"})
    run = RunDirectory.open(config, runs=tmp_path)
    run.begin(config)
    append_line(run.attempts_file, {"event": "start", "attempt": 1})
    run.close()
    words = [str(run.config_file)]
    refuse_renamed_run(words, config)
    renamed = [str(run.path.rename(tmp_path / "other") / "config.yaml")]
    with pytest.raises(ConfigError, match=r"rename \S+/other to run to continue it"):
        refuse_renamed_run(renamed, config)
    refuse_renamed_run([*renamed, "name=run"], config)
    refuse_renamed_run([*renamed, "mine.yaml"], resolved({"name": "mine"}))
    run.path.symlink_to(tmp_path / "other")  # on another disk
    refuse_renamed_run(words, config)
    assert main([*renamed]) == EXIT_USER_ERROR


def test_a_mistake_found_before_training_does_not_bind_the_name(tmp_path: Path) -> None:
    RunDirectory.open(resolved({"name": "run", "train": {"batch_size": 100_000}}), runs=tmp_path).close()
    RunDirectory.open(resolved({"name": "run"}), runs=tmp_path).close()


def test_only_more_training_or_a_named_checkpoint_continues_a_finished_run(tmp_path: Path) -> None:
    begun(tmp_path)
    RunDirectory(tmp_path / "run").write_summary({"status": "completed"})
    for changes, resume in (({}, None), ({}, ""), ({"tracking": {"log_every": 7}}, "")):
        with pytest.raises(RunDirectoryError, match="is finished"):
            RunDirectory.open(resolved({"name": "run", **changes}), resume=resume, runs=tmp_path)
    RunDirectory.open(resolved({"name": "run"}), resume="step-00000001", runs=tmp_path).close()
    longer = resolved({"name": "run", "train": {"epochs": 99}})
    run = RunDirectory.open(longer, resume="", runs=tmp_path)
    run.begin(longer)
    run.close()  # and killed here: the same command goes on, as the run is not finished any more
    RunDirectory.open(longer, runs=tmp_path).close()


def test_a_run_that_is_moved_aside_takes_its_lock_with_it(tmp_path: Path) -> None:
    """Who waits for the lock of a run that `--fresh` renames meanwhile must not train beside the new one."""
    begun(tmp_path)
    first = RunDirectory.open(resolved({"name": "run"}), runs=tmp_path)
    has_waited = threading.Event()
    got: list[TextIO] = []
    waiting = threading.Thread(
        target=lambda: got.append(locks.acquire(tmp_path / "run/lock", on_wait=has_waited.set)), daemon=True
    )
    waiting.start()
    assert has_waited.wait(HANG)
    first._move_aside()
    first.close()
    waiting.join(HANG)
    assert os.path.samestat(os.fstat(got[0].fileno()), (tmp_path / "run/lock").stat())  # not that of run.old-1
    got[0].close()


@pytest.mark.parametrize(
    ("reason", "error", "end"),
    [
        (COMPLETED, None, ("completed", "completed", None)),
        (END_TIME, None, ("stopped", "end_time", "end time")),
        (None, ValueError("broken"), ("failed", "error", "ValueError: broken")),
        (None, StoppedError("asked"), ("stopped", "other_rank", "StoppedError: asked")),
        (END_TIME, StoppedError("asked"), ("stopped", "end_time", "end time")),
        (END_TIME, ValueError("broken"), ("stopped", "end_time", "end time")),  # after its checkpoint
        (COMPLETED, ValueError("broken"), ("failed", "error", "ValueError: broken")),  # before its summary
        (None, None, ("failed", "error", None)),
    ],
)
def test_every_attempt_is_accounted_for(
    tmp_path: Path, reason: EndReason | None, error: Exception | None, end: tuple[str, str, str | None]
) -> None:
    run = RunDirectory(tmp_path)
    try:
        attempt = Attempt(run.path, world_size=2, step=5)
        with recorded_attempt(attempt):
            attempt.begin(run.next_attempt())
            attempt.step, attempt.reason = 9, reason
            if error is not None:
                raise error
    except (ValueError, StoppedError):
        pass
    start, line = read_lines(run.attempts_file)
    assert (start["event"], start["attempt"], start["world_size"], start["from_step"]) == ("start", 1, 2, 5)
    assert (line["event"], line["attempt"], line["step"]) == ("end", 1, 9)
    assert (line["status"], line["code"], line["reason"]) == end


def test_a_torn_line_is_passed_over_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b')
    append_line(path, {"a": 3})
    assert [line["a"] for line in read_lines(path)] == [1, 3]


def test_atomic_writes_leave_only_the_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "x.json", json.dumps({"a": 1}))
    write_atomically(tmp_path / "x.json", json.dumps({"a": 2}))
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 2}


@pytest.mark.parametrize(
    "damage", [b'{"a": 2, "b', b"\xff\xfe\x00", b"[1, 2]", b"null", b"[" * 100_000, b"9" * 5000, b""]
)
def test_damage_is_passed_over(damage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(damage)
    assert read_json(path) == {}
    path.write_bytes(b'{"a": 1}\n' + damage + b'\n{"a": 3}\n')
    assert [line["a"] for line in read_lines(path)] == [1, 3]
    path.write_bytes(b'{"a": "\xff"}\n')
    assert (read_json(path), read_lines(path)) == ({"a": "\ufffd"}, [{"a": "\ufffd"}])


def test_a_damaged_yaml_file_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in ("a: [1", "- 1", "", "a: \0"):
        path.write_text(text)
        assert read_yaml(path) == {}
    path.write_text("a: 1")
    assert read_yaml(path) == {"a": 1}


def test_a_file_that_cannot_be_read_is_empty_unless_its_content_matters(tmp_path: Path) -> None:
    """A training that took unreadable rows for none would write the file anew without them."""
    assert (read_json(tmp_path), read_lines(tmp_path), read_yaml(tmp_path)) == ({}, [], {})
    for read in (read_json, read_lines):
        with pytest.raises(IsADirectoryError):
            read(tmp_path, strict=True)
    assert (read_json(tmp_path / "x", strict=True), read_lines(tmp_path / "x", strict=True)) == ({}, [])
