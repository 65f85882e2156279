"""lease.json at a mirror: which process copies a run there, so that no two machines do without a word."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime

from trainlib.errors import UserError
from trainlib.runs.attempt.owner import Owner, this_process
from trainlib.runs.files.json_records import parse_record, timestamp
from trainlib.runs.mirror.store import MirrorError, Store

LEASE = "lease.json"
RENEW_SECONDS = 15.0
FRESH_SECONDS = 2 * RENEW_SECONDS  # without a renewal, its holder changes nothing at the mirror
DEAD_SECONDS = 3 * RENEW_SECONDS  # without one, it is dead for others
LONG_AGO_SECONDS = 600.0  # since its last renewal: it is dead, however wrong one of the clocks may be
SETTLE_SECONDS = 1.0  # after which the last of those that took it at the same moment has it
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Holder:
    """Who holds a mirror.

    training   the process that trains
    copier     the process of the same machine that copies for it; None in a lease of an older version
    renewed    when it last showed that it lives
    """

    training: Owner
    copier: Owner | None
    renewed: datetime


class Lease:
    """A training's hold on its mirror. A thread renews it, so that one that copies for an hour does not look dead.

    training   the process that trains; this one copies for it
    """

    def __init__(self, store: Store, training: Owner):
        self.store = store
        copier = this_process()
        self._training = training
        self._content = asdict(training) | {"copier": {"pid": copier.pid, "started": copier.started}}
        self._renewed, self._lapses = -math.inf, 0
        self._lock = threading.Lock()
        self._speaking = threading.Lock()  # to the store, whose library may not serve two threads
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease of the mirror", daemon=True)

    @property
    def is_fresh(self) -> bool:
        """Return True if the lease is held, and no other machine can take this process for dead yet."""
        return _now() - self._renewed < FRESH_SECONDS

    def take(self) -> None:
        """Become the holder, or again after a while without the mirror.

        Raises UserError where another process holds it, and MirrorError.
        """
        with self._speaking:
            holder = living_holder(self.store, self._training)
            if holder is None:
                self._renew()
                time.sleep(SETTLE_SECONDS)
                found = read_lease(self.store)
                if found is None:
                    raise MirrorError(f"{LEASE} has vanished")
                if found.training == self._training:
                    if self._thread.ident is None:
                        self._thread.start()
                    return
                self.lapse()
                holder = found.training
            raise UserError(
                f"mirror: process {holder.pid} on {holder.host} trains this run, too, and copies it to "
                f"{self.store.name}"
            )

    def lapse(self) -> None:
        """Hold the mirror no more until it is taken again."""
        with self._lock:
            self._renewed, self._lapses = -math.inf, self._lapses + 1

    def extend(self) -> None:
        """Renew the lease; where it has lapsed, or is another's or nobody's by now, it must be taken again."""
        with self._speaking:
            if not self.is_fresh:
                return
            found = read_lease(self.store)
            if found is not None and found.training == self._training:
                self._renew()
            else:
                self.lapse()

    def release(self) -> None:
        """Give the lease back."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(RENEW_SECONDS)  # it may be writing
        found = read_lease(self.store)
        if found is not None and found.training == self._training:
            self.store.remove(LEASE)

    def _renew(self) -> None:
        now, lapses = _now(), self._lapses
        self.store.write(LEASE, json.dumps(self._content | {"time": timestamp()}).encode())
        with self._lock:
            if lapses == self._lapses:
                self._renewed = now

    def _keep(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            with suppress(MirrorError):  # it lapses by itself
                self.extend()


def read_lease(store: Store) -> Holder | None:
    """Return who holds a mirror; None where nobody does. MirrorError as of a store."""
    content = store.read(LEASE)
    if content is None:
        return None
    try:
        found = parse_record(content)
        training = Owner(**{field.name: found[field.name] for field in fields(Owner) if field.name in found})
        copier = replace(training, **found["copier"]) if "copier" in found else None
        return Holder(training, copier, datetime.fromisoformat(found["time"]))
    except (ValueError, KeyError, TypeError):
        return None  # it is written whole: no lease of this software


def living_holder(store: Store, own: Owner | None, on_wait: Callable[[], None] = lambda: None) -> Owner | None:
    """Return another training whose run is copied to this mirror and that lives; None where there is none.

    own       a training that is no other
    on_wait   called before it waits to see whether a machine that was there lately renews its lease

    Of a training that was killed on this machine, it waits until the process that copied for it has ended, too.
    """
    found = read_lease(store)
    if found is None or found.training == own:
        return None
    if found.training.is_on_this_machine:
        return found.training if found.training.lives_here or _copies_on(found) else None
    if abs((datetime.now(UTC) - found.renewed).total_seconds()) > LONG_AGO_SECONDS:
        return None
    on_wait()
    deadline = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        now = read_lease(store)
        if now is None:
            return None
        if now != found:
            return now.training
    return None


def _copies_on(found: Holder) -> bool:
    """Return True if what copied for a training that was killed on this machine does not end within some time."""
    deadline = time.monotonic() + DEAD_SECONDS
    while found.copier is not None and found.copier.lives_here:
        if time.monotonic() > deadline:
            return True
        time.sleep(_POLL_SECONDS / 10)
    return False


def _now() -> float:
    """Return seconds that also pass while the machine is asleep."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)
