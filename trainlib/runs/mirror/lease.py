"""lease.json at a mirror: which process copies a run there, so that no two machines do without a word."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import UTC, datetime

from trainlib.runs.attempt.owner import Owner
from trainlib.runs.files.json_records import parse_record, timestamp
from trainlib.runs.mirror.store import Store

LEASE = "lease.json"
RENEW_SECONDS = 15.0
DEAD_SECONDS = 3 * RENEW_SECONDS  # without a renewal, the holder is dead
LONG_AGO_SECONDS = 600.0  # since its last renewal: it is dead, however wrong one of the clocks may be
_POLL_SECONDS = 1.0


def read_lease(store: Store) -> tuple[Owner, datetime] | None:
    """Return who holds the lease and when it was renewed last; None where nobody does. MirrorError as of a store."""
    content = store.read(LEASE)
    if content is None:
        return None
    try:
        found = parse_record(content)
        return Owner(**{field.name: found[field.name] for field in fields(Owner)}), datetime.fromisoformat(
            found["time"]
        )
    except (ValueError, KeyError, TypeError):
        return None  # it is written whole: no lease of this software


def renew(store: Store, owner: Owner) -> None:
    """Take the lease, or show that its holder lives."""
    store.write(LEASE, json.dumps(asdict(owner) | {"time": timestamp()}).encode())


def release(store: Store, owner: Owner) -> None:
    """Give the lease back."""
    if holds(store, owner):
        store.remove(LEASE)


def holds(store: Store, owner: Owner) -> bool:
    """Return True if the lease is this owner's."""
    found = read_lease(store)
    return found is not None and found[0] == owner


def living_holder(store: Store, own: Owner | None, on_wait: Callable[[], None] = lambda: None) -> Owner | None:
    """Return another process that copies to this mirror and lives; None where there is none.

    own       a process that is no other
    on_wait   called before it waits to see whether a machine that was there lately renews its lease
    """
    found = read_lease(store)
    if found is None or found[0] == own:
        return None
    holder, renewed = found
    if holder.is_on_this_machine:
        return holder if holder.lives_here else None
    if abs((datetime.now(UTC) - renewed).total_seconds()) > LONG_AGO_SECONDS:
        return None
    on_wait()
    deadline = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        now = read_lease(store)
        if now is None:
            return None
        if now != found:
            return now[0]
    return None
