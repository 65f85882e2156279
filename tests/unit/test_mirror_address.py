"""Addresses of mirrors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from trainlib.config import dump_config, harmful, is_free, load_config
from trainlib.errors import ConfigError, UserError
from trainlib.runs.mirror.store import MirrorError, Store, require_usable


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("s3://key:hunter2@bucket/path", "must hold no user, password or token"),
        ("s3://hunter2@bucket", "must hold no user, password or token"),
        ("abfs://box/path?sig=hunter2", "must hold no user, password or token"),
        ("s3://", 'got "s3://", must be one address, like s3://bucket/path'),
        ("s3:///", "must be one address"),
        ("S3://bucket", "must be one address"),
        ("simplecache::s3://bucket", "must be one address"),
        ("https://example.org/x", "must be an address that can be written to"),
        ("''", "must be an address, like s3://bucket/path, a folder, or null"),
        ("3", "must be an address"),
        ("true", "must be an address"),
    ],
)
def test_an_address_that_cannot_be_is_refused_and_no_secret_repeated(address: str, rule: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(["quickstart", f"mirror={address}"])
    [mistake] = raised.value.mistakes
    assert mistake.key == "mirror"
    assert rule in mistake.rule
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "address", ["s3://bucket", "gs://a/b c", "memory://x", "file:///x", "copies", "~/copies", "/x"]
)
def test_an_address_says_nothing_of_what_a_run_computes(address: str) -> None:
    with_mirror, without = load_config(["quickstart", f"mirror='{address}'"]), load_config(["quickstart"])
    assert with_mirror.mirror == address
    assert without.mirror is None
    assert is_free("mirror")
    assert not harmful(without, with_mirror)
    assert dump_config(without).replace("mirror: null", "") == dump_config(with_mirror).replace(
        next(line for line in dump_config(with_mirror).splitlines() if line.startswith("mirror:")), ""
    )


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s4://bucket", r"fsspec knows no s4://: write s3://BUCKET/PATH"),
        ("s3://bucket", r"needs the package s3fs: pip install 'trainlaunch\[mirror\]'"),
        ("gs://bucket", r"needs the package gcsfs: pip install gcsfs"),
        ("runs", "holds the run directory itself"),
        ("file://{here}/runs", "holds the run directory itself"),
        ("runs/run", "holds the run directory itself"),
    ],
)
def test_where_nothing_can_be_copied_is_told_before_training(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("s3fs", "gcsfs") else found(name))
    with pytest.raises(UserError, match=message):
        require_usable(address.format(here=workdir), Path("runs/run"))


def test_a_folder_beside_the_runs_can_be_a_mirror(workdir: Path) -> None:
    for address in ("copies", f"file://{workdir}/copies", "memory://x", ".."):
        require_usable(address, Path("runs/run"))


def test_what_a_file_system_raises_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mirror").write_text("a file")
    with pytest.raises(MirrorError, match=r"Not a directory|File exists"):
        Store(f"{tmp_path}/mirror", "run").write("x", b"")
    with pytest.raises(MirrorError):
        Store("s4://x", "run")
