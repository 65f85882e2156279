"""`launch doctor` on folders: rights, room, and file systems that do not keep their promises."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doctor_checks import verdicts
from needs import need

from launch.doctor import storage
from launch.doctor.finding import Verdict
from trainlib.runs.machine.file_systems import file_system


def test_a_good_folder(tmp_path: Path) -> None:
    """It need not be there yet, and nothing is left in it or beside it. Its file system is what findmnt calls it."""
    need("findmnt")
    (finding,) = storage.check_storage("runs", tmp_path / "runs")
    words = ["findmnt", "-n", "-o", "FSTYPE", "-T", str(tmp_path)]
    kind = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    assert finding.verdict is not Verdict.PROBLEM
    assert f"{tmp_path}/runs on {kind}" in finding.text
    assert "MB/s" in finding.text
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk in memory with these options, until the test ends."""
    need("mount", "umount", root=True)
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)
        return disk

    yield mount
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    ("options", "said"), [("size=1m", "No space left on device"), ("ro", "Read-only file system")], ids=["full", "ro"]
)
def test_a_folder_that_cannot_be_written(mounted: Callable[[str], Path], options: str, said: str) -> None:
    disk = mounted(options)
    (finding,) = storage.check_storage("runs", disk / "runs")
    assert finding.verdict is Verdict.PROBLEM
    assert finding.text == f"{disk}/runs cannot be written: {said}"
    assert list(disk.iterdir()) == []


def test_little_room_and_a_disk_in_memory(mounted: Callable[[str], Path]) -> None:
    disk = mounted("size=200m")
    (finding,) = storage.check_storage("runs", disk)
    assert (finding.verdict, finding.advice) == (Verdict.PROBLEM, "make room: a checkpoint of a VGG16 takes 1.1 GB")
    assert f"{disk} on tmpfs: 0.2 GiB free" in finding.text


def test_the_file_system_of_a_path() -> None:
    mountinfo = (
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "23 22 0:5 / /home rw shared:2 master:3 - nfs4 server:/home rw\n"
        "24 23 0:6 / /home/a\\040b rw - lustre mds:/x rw\n"
    )
    assert file_system(Path("/home/u/runs"), mountinfo) == "nfs4"
    assert file_system(Path("/home/a b/runs"), mountinfo) == "lustre"
    assert file_system(Path("/homes"), mountinfo) == "ext4"
    assert file_system(Path("/x"), "") == "unknown file system"


def test_a_file_system_without_its_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Renames that are not atomic, and locks that are refused, or given twice, are each seen."""
    assert storage.renames_are_atomic(tmp_path)
    assert storage.lock_fault(tmp_path / "lock") is None
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", _replace_in_two_steps)
        assert not storage.renames_are_atomic(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda file, how: None)
        assert storage.lock_fault(tmp_path / "lock") == "a second lock was given"
    monkeypatch.setattr(fcntl, "flock", _refuse_locks)
    assert storage.lock_fault(tmp_path / "lock") == os.strerror(errno.ENOLCK)
    assert verdicts(storage.check_storage("runs", tmp_path))[1:] == [("runs", "problem")]


def _replace_in_two_steps(self: Path, target: Path) -> None:
    target.unlink()
    time.sleep(0.001)
    os.rename(self, target)


def _refuse_locks(file: object, how: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
