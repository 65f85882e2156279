"""Pictures by index: plain files are read whole, and nothing but a regular file is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trainlib.data.pictures.files import PlainFiles, SomeFiles


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
