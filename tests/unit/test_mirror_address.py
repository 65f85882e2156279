"""Addresses of mirrors, and the lease by which one machine at a time copies to one."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mirrored_runs import make_run

from trainlib.config import dump_config, harmful, is_free, load_config
from trainlib.errors import ConfigError, RunDirectoryError, UserError
from trainlib.runs.attempt.owner import Owner, this_process
from trainlib.runs.mirror import lease
from trainlib.runs.mirror.restoring import restore
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


def elsewhere(**changes: object) -> Owner:
    return replace(this_process(), id="another", host="there", machine="another machine", **changes)  # type: ignore[arg-type]


def write_lease(there: Store, owner: Owner, age: float = 0.0) -> None:
    time = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    there.write(lease.LEASE, json.dumps(asdict(owner) | {"time": time}).encode())


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(lease, "DEAD_SECONDS", 0.1)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.02)
    return Store(f"{tmp_path}/mirror", "run")


@pytest.mark.parametrize(
    ("owner", "age", "lives"),
    [
        (this_process, 0.0, True),
        (this_process, 1e6, True),  # renewed long ago, and here: the process is looked at, not the clock
        (lambda: replace(this_process(), started="1"), 0.0, False),  # its number is another process's by now
        (elsewhere, 0.0, False),
        (elsewhere, 1e6, False),
    ],
)
def test_a_holder_that_does_not_renew_is_dead(
    there: Store, owner: Callable[[], Owner], age: float, lives: bool
) -> None:
    write_lease(there, holder := owner(), age)
    assert lease.living_holder(there, None) == (holder if lives else None)
    assert lease.living_holder(there, holder) is None


@pytest.mark.parametrize("skew", [0.0, -300.0, 300.0])
def test_a_holder_elsewhere_that_renews_lives_whatever_its_clock_says(there: Store, skew: float) -> None:
    write_lease(there, elsewhere(), skew)
    renewed = lease.living_holder(there, None, lambda: None)
    assert renewed is None

    def renew() -> None:
        lease._POLL_SECONDS = 0.0
        original = there.read

        def read(name: str) -> bytes | None:
            write_lease(there, elsewhere(), skew - 1)
            return original(name)

        there.read = read  # type: ignore[method-assign]

    assert lease.living_holder(there, None, renew) == elsewhere()


def test_a_start_while_another_machine_trains_is_refused(there: Store, tmp_path: Path) -> None:
    make_run(tmp_path / "mirror/run", 4)
    write_lease(there, this_process())
    with pytest.raises(RunDirectoryError, match=r"trains this run into .*; wait for it, stop it there"):
        restore(tmp_path / "here/run", there, print)
    assert not (tmp_path / "here").exists()


def test_a_lease_is_given_back_by_its_holder_alone(there: Store) -> None:
    own = this_process()
    lease.renew(there, own)
    assert lease.holds(there, own)
    lease.release(there, elsewhere())
    assert lease.holds(there, own)
    lease.release(there, own)
    assert there.sizes() == {}


def test_what_a_file_system_raises_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mirror").write_text("a file")
    with pytest.raises(MirrorError, match=r"Not a directory|File exists"):
        Store(f"{tmp_path}/mirror", "run").write("x", b"")
    with pytest.raises(MirrorError):
        Store("s4://x", "run")
