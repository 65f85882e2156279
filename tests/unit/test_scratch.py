"""Temporary folders: those of killed processes are removed, those of living ones never."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from trainlib.runs.files import scratch

HOLDER = """
import os, signal, sys, tempfile
from pathlib import Path
from trainlib.runs.files import scratch
tempfile.tempdir = sys.argv[1]
scratch.SHARED_MEMORY = Path(sys.argv[1])
made = scratch.make_scratch()
print(made.path, flush=True)
sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_it_is_swept_once_its_maker_was_killed(tmp_path: Path) -> None:
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdin
        path = Path(holder.stdout.readline().strip())
        (path / "file").write_text("in use")
        scratch.remove_abandoned()
        assert (path / "file").exists()
        holder.stdin.close()
        holder.wait()
    mine = scratch.make_scratch()  # which sweeps
    assert mine is not None
    assert not path.exists()
    scratch.remove_abandoned()
    assert mine.path.is_dir()
    assert mine.path.stat().st_mode & 0o777 == 0o700
    mine.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "owner").touch()
    (tmp_path / "trainlaunch-link").symlink_to(other)
    (tmp_path / "trainlaunch-file").touch()
    (tmp_path / "trainlaunch-new").mkdir()  # no lock yet, and young
    (tmp_path / ".trainlaunch-new").mkdir()
    (tmp_path / "other-program").mkdir()
    fifo = tmp_path / "trainlaunch-fifo"
    fifo.mkdir()
    os.mkfifo(fifo / "owner")
    (fifo / "owner").chmod(0)
    before = sorted(tmp_path.iterdir())
    if os.geteuid() == 0:
        theirs = tmp_path / "trainlaunch-theirs"
        theirs.mkdir()
        (theirs / "owner").touch()
        os.chown(theirs, 12345, 12345)
        before = sorted([*before, theirs])
    (fifo / "owner").unlink()
    scratch.remove_abandoned()
    assert sorted(tmp_path.iterdir()) == before
    assert (other / "owner").exists()


def test_folders_of_older_versions_go_after_a_day(tmp_path: Path) -> None:
    old = tmp_path / "trainlaunch-old"
    old.mkdir()
    os.utime(old, (0, time.time() - 2 * 24 * 3600))
    scratch.remove_abandoned()
    assert not old.exists()


def test_where_nothing_can_be_written_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "SHARED_MEMORY", tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert scratch.make_scratch() is None
