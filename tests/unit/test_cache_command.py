"""`launch cache list` and `remove`: what is kept of data sets on this machine, also by earlier versions."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from launch.cli import main

DAY = 86_400


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(folder: Path, name: str, days: float, size: int = 8192) -> Path:
    one = folder / name
    one.mkdir(parents=True)
    (one / "about.json").write_text(json.dumps({"data": f"/data/{name}", "kept": "pixels"}))
    (one / "0000.data").write_bytes(os.urandom(size))
    (one / "0000.lock").touch()
    (one / "used").touch()
    os.utime(one / "used", (time.time() - days * DAY,) * 2)
    return one


def make_earlier(folder: Path, name: str, days: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for ending in (".npy", ".json", ".lock"):
        (folder / f"{name}{ending}").write_bytes(b"x")
        os.utime(folder / f"{name}{ending}", (time.time() - days * DAY,) * 2)


def output(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(["cache", *words]) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_least_recently_used_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, days in (("photos", 1), ("flowers", 40), ("birds", 3)):
        make(folder, name, days)
    make_earlier(folder, "0f" * 16, 10)
    (folder / "something else").mkdir()
    said = output(capsys, "list")
    assert [line.split()[0] for line in said.splitlines()[1:5]] == ["flowers", "0f" * 16, "birds", "photos"]
    assert "/data/birds" in said
    assert "of an earlier version" in said
    assert "4 data sets" in said
    assert "something else" not in said


def test_an_empty_cache(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"nothing in {folder}" in output(capsys, "list")
    assert "removed 0 of 0" in output(capsys, "remove", "--all")


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["flow", "birds"], ["photos"]),
        (["--older-than", "2"], ["photos"]),
        (["--older-than", "7.5"], ["birds", "photos"]),
        (["--all"], []),
    ],
)
def test_remove(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], left: list[str]) -> None:
    for name, days in (("photos", 1), ("flowers", 40), ("birds", 3)):
        make(folder, name, days)
    make_earlier(folder, "0f" * 16, 10)
    output(capsys, "remove", *words)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert names == left
    assert (folder / f"{'0f' * 16}.npy").exists() == ("flow" in words)


def test_what_is_being_prepared_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make(folder, "photos", 1)
    make(folder, "birds", 1)
    with (one / "0000.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "photos: being prepared" in output(capsys, "remove", "--all", code=2)
    assert sorted(path.name for path in folder.iterdir()) == ["photos"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the three"),
        (["photos", "--all"], "one of the three"),
        (["p"], "beginning of several names: photos, places"),
        (["birds"], "is not in the cache"),
    ],
)
def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    for name in ("photos", "places"):
        make(folder, name, 1)
    assert message in output(capsys, "remove", *words, code=2)
    assert len(list(folder.iterdir())) == 2
