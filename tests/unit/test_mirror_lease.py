"""The lease by which one machine at a time copies to a mirror."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mirrored_runs import make_run, tree
from patience import wait_until

from trainlib.errors import RunDirectoryError, UserError
from trainlib.runs.attempt.owner import Owner, this_process
from trainlib.runs.files import locks
from trainlib.runs.mirror import lease, restoring
from trainlib.runs.mirror.lease import Lease
from trainlib.runs.mirror.restoring import restore
from trainlib.runs.mirror.store import MirrorError, Store


def dead(owner: Owner) -> Owner:
    """The same as a process whose number is another one's by now."""
    return replace(owner, started="1")


def elsewhere(**changes: object) -> Owner:
    return replace(this_process(), id="another", host="there", machine="another machine", **changes)  # type: ignore[arg-type]


def write_lease(there: Store, owner: Owner, age: float = 0.0) -> None:
    time = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    there.write(lease.LEASE, json.dumps(asdict(owner) | {"time": time}).encode())


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(lease, "DEAD_SECONDS", 0.1)
    monkeypatch.setattr(lease, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.0)
    return Store(f"{tmp_path}/mirror", "run")


@pytest.mark.parametrize(
    ("owner", "age", "lives"),
    [
        (this_process, 0.0, True),
        (this_process, 1e6, True),  # renewed long ago, and here: the process is looked at, not the clock
        (lambda: dead(this_process()), 0.0, False),  # its number is another process's by now
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


def killed(copier: Owner) -> dict[str, object]:
    """What is in the lease of a training of this machine that was killed."""
    process = {"pid": copier.pid, "started": copier.started}
    return asdict(replace(dead(this_process()), id="killed")) | {"copier": process}


def test_a_start_waits_for_what_copies_for_a_training_that_was_killed_here(there: Store) -> None:
    time = {"time": datetime.now(UTC).isoformat()}
    there.write(lease.LEASE, json.dumps(killed(this_process()) | time).encode())
    found = lease.living_holder(there, None)
    assert found is not None
    assert found.id == "killed"
    there.write(lease.LEASE, json.dumps(killed(dead(this_process())) | time).encode())
    assert lease.living_holder(there, None) is None


def test_a_lease_is_given_back_by_its_holder_alone(there: Store) -> None:
    own, other = Lease(there, this_process()), Lease(there, elsewhere())
    own.take()
    other.release()
    assert there.sizes().keys() == {lease.LEASE}
    own.release()
    assert there.sizes() == {}


def test_a_lease_is_renewed_however_long_a_copy_takes(there: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    own = Lease(there, this_process())
    own.take()
    first = there.read(lease.LEASE)
    wait_until(lambda: there.read(lease.LEASE) != first)
    assert own.is_fresh
    own.release()


@pytest.mark.parametrize("found", ["another", "nobody", "no answer"])
def test_a_lease_that_is_lost_must_be_taken_again(there: Store, found: str) -> None:
    """Nothing is changed at the mirror meanwhile: see `Copier`."""
    own = Lease(there, this_process())
    own.take()
    if found == "another":
        write_lease(there, elsewhere())
    elif found == "nobody":
        there.remove(lease.LEASE)
    else:
        own.lapse()
    before = there.read(lease.LEASE)
    own.extend()
    assert not own.is_fresh
    assert there.read(lease.LEASE) == before, "what another one has written stays"
    own.release()


def test_a_lease_that_was_not_renewed_in_time_is_none(there: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was asleep, or cut off, for so long that another one may have taken over."""
    own = Lease(there, this_process())
    own.take()
    assert own.is_fresh
    now = lease._now()
    monkeypatch.setattr(lease, "_now", lambda: now + lease.FRESH_SECONDS)
    assert not own.is_fresh
    own.release()


def test_of_two_that_take_it_at_the_same_moment_one_has_it(there: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Lease(there, this_process())
    monkeypatch.setattr("time.sleep", lambda seconds: write_lease(there, elsewhere()))
    with pytest.raises(UserError, match="on there trains this run, too, and copies it to"):
        first.take()
    assert not first.is_fresh
    monkeypatch.setattr("time.sleep", lambda seconds: there.remove(lease.LEASE))
    there.remove(lease.LEASE)
    with pytest.raises(MirrorError, match="has vanished"):
        first.take()


def test_two_starts_never_bring_one_run_back_together(
    there: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one is refused where the first takes long, and leaves what the first has made."""
    make_run(tmp_path / "mirror/run", 4)
    monkeypatch.setattr(restoring, "LOCK_PATIENCE", 0.0)
    run = tmp_path / "here/run"
    with locks.acquire(run / "lock"), pytest.raises(RunDirectoryError, match=r"may be bringing it back.*--name"):
        restore(run, there, print)
    assert tree(run) == {}
    restore(run, there, print)
    assert tree(run) == tree(tmp_path / "mirror/run")
