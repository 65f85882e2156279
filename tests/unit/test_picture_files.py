"""Pictures by index: plain files are read whole, and nothing but a regular file is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainlib.data.pictures.files import PlainFiles, SomeFiles, read_picture


def test_some_files_are_read_by_their_own_numbers(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    files = PlainFiles([str(tmp_path / name) for name in "abc"])
    chosen = SomeFiles(files, [2, 0])
    assert [chosen.read(i) for i in range(len(chosen))] == [b"c", b"a"]
    assert chosen.describe(0) == str(tmp_path / "c")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        PlainFiles([str(tmp_path / "pipe")]).read(0)


@pytest.mark.parametrize("most", [1, 3, 1 << 20])
def test_a_file_whose_bytes_come_in_parts_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    path, read = tmp_path / "a.jpg", os.read
    monkeypatch.setattr(os, "read", lambda descriptor, count: read(descriptor, min(count, most)))
    for content in (b"", b"1234567"):
        path.write_bytes(content)
        assert read_picture(str(path)) == content


def test_a_file_that_says_nothing_of_its_size_is_read_whole() -> None:
    assert read_picture("/proc/self/status").startswith(b"Name:")
