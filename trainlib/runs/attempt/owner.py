"""owner.json: which process trains into a run directory, renewed while it does.

The lock (`locks`) protects a run wherever the file system passes locks on. The owner's file protects it elsewhere as
well, and tells a process that trains from one that merely reads and holds the lock: a backup, for example.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from trainlib.platform.regular_files import open_regular
from trainlib.runs.files.json_records import Record, read_json
from trainlib.runs.records.jobs import slurm_job

OWNER_FILE = "owner.json"
LAUNCHER = "TRAINLAUNCH_LAUNCHER"  # `ID PROCESS` of a launcher that starts the run again by itself, for its ranks
RENEW_SECONDS = 3.0  # between two renewals
DEAD_SECONDS = 2 * RENEW_SECONDS + 1.0  # without one, the owner is dead
RECENT_SECONDS = 60.0  # for readers, who do not wait: clocks of two machines may differ by so much
_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Owner:
    """A process that trains, or is about to, or holds a run for something else.

    id        no other start of any run has it; all starts by one launcher that starts the run again share it
    machine   names the host, its boot and the container: process ids of equal machines may be compared
    started   when the process began, as the system tells it: another process that gets its id later has another one
    job       the SLURM job, which all its restarts share; None outside of one
    purpose   what it does in place of training, as `launch prune`; None where it trains
    """

    id: str
    host: str
    pid: int
    machine: str
    started: str
    job: str | None
    purpose: str | None = None

    @property
    def stop_token(self) -> str:
        """Return what a STOP file names that is meant for this start, and for the restarts of its job."""
        return stop_token_of(self.job) if self.job else self.id

    @property
    def is_on_this_machine(self) -> bool:
        """Return True if the process ids of this process and of the owner may be compared."""
        return self.machine == _machine()

    @property
    def lives_here(self) -> bool:
        """Return True if the owner is a living process of this machine."""
        return self.is_on_this_machine and _started(self.pid) == self.started


def stop_token_of(job: str) -> str:
    """Return the `stop_token` of all starts of a SLURM job, which is given as the queue writes its id."""
    return f"job {job}"


def read_owner(directory: Path) -> Owner | None:
    """Return who owns this directory, or did until it was killed; None where there is nobody."""
    if not os.path.lexists(directory / OWNER_FILE):  # which is asked of every run in a list
        return None
    content: Record = {"purpose": None, **read_json(directory / OWNER_FILE)}
    if set(content) != {field.name for field in fields(Owner)} or type(content["pid"]) is not int:
        return None
    may_be_none = ("job", "purpose")
    is_text = [isinstance(value, str) for name, value in content.items() if name not in ("pid", *may_be_none)]
    return Owner(**content) if all(is_text) and all(isinstance(content[n], str | None) for n in may_be_none) else None


def was_renewed_lately(directory: Path) -> bool:
    """Return True if the owner's file was renewed within the last minute, by the clocks of both machines."""
    with suppress(OSError):
        return abs(time.time() - (directory / OWNER_FILE).stat().st_mtime) < RECENT_SECONDS
    return False


def is_taken(directory: Path) -> bool:
    """Return True if a living process owns the directory. Waits some seconds where it may be on another machine."""
    owner = read_owner(directory)
    if owner is not None and owner.is_on_this_machine:
        return owner.lives_here
    deadline = time.monotonic() + DEAD_SECONDS
    before = _state(directory)
    while (now := _state(directory)) is not None and time.monotonic() < deadline:
        if now != before:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def is_handed_over(directory: Path, environ: Mapping[str, str] = os.environ) -> bool:
    """Return True if the owner is the launcher that has started this process, and keeps the directory for it."""
    identity, _, pid = environ.get(LAUNCHER, "").partition(" ")
    owner = read_owner(directory)
    return owner is not None and (owner.id, str(owner.pid)) == (identity, pid) and owner.is_on_this_machine


class Ownership:
    """This process's entry in owner.json, which a thread renews until `release`.

    owner       the identity to take, by default this process's
    on_renewal  called by the thread each time, as long as the file is this process's
    purpose     what this process does in place of training
    renewed     False: no thread; the caller calls `renew` every few seconds
    Raises FileExistsError where another process is the owner, dead or alive, and OSError where nothing can be written.
    """

    def __init__(
        self,
        directory: Path,
        owner: Owner | None = None,
        on_renewal: Callable[[], None] = lambda: None,
        *,
        purpose: str | None = None,
        renewed: bool = True,
    ):
        self._on_renewal = on_renewal
        self._file = directory / OWNER_FILE
        self.owner = replace(owner or this_process(), purpose=purpose)
        self._since = time.monotonic()
        self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            content = {name: value for name, value in asdict(self.owner).items() if (name, value) != ("purpose", None)}
            os.write(self._descriptor, json.dumps(content).encode() + b"\n")
        except OSError:
            os.close(self._descriptor)
            self._file.unlink()
            raise
        self.is_lost = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="owner of the run", daemon=True)
        if renewed:
            self._thread.start()

    def holds(self) -> bool:
        """Return True if the file at the path of the run directory is still this process's."""
        found = read_owner(self._file.parent)
        return found == self.owner

    def holds_for_good(self) -> bool:
        """Return the same, after a moment in which another process that began at the same time would have written."""
        time.sleep(max(0.0, 2 * _POLL_SECONDS - (time.monotonic() - self._since)))
        return self.holds()

    def release(self) -> None:
        """Stop renewing, and remove the file; where it was moved, empty it, so that it names nobody any more."""
        if self.holds():
            with suppress(OSError):
                self._file.unlink()
        self.abandon()

    def abandon(self) -> None:
        """Stop renewing, and empty the file, wherever it is."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(OSError):
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def renew(self) -> None:
        """Show that this process lives."""
        with suppress(OSError):
            os.utime(self._descriptor)  # also on a full disk; of the file itself, wherever it has been moved to

    def _keep(self) -> None:
        missed = 0
        while not self._over.wait(RENEW_SECONDS):
            self.renew()
            missed = 0 if self.holds() else missed + 1  # a file system may answer wrongly once
            if not missed:
                self._on_renewal()
            self.is_lost = missed > 1 or (missed == 1 and read_owner(self._file.parent) is not None)


def new_identity() -> str:
    """Return an `id` that no other start of any run has."""
    return secrets.token_hex(8)


def this_process(environ: Mapping[str, str] = os.environ) -> Owner:
    """Return this process as an owner, under the identity of its launcher where that starts the run again by itself."""
    pid = os.getpid()
    identity = environ.get(LAUNCHER, "").partition(" ")[0] or new_identity()
    return Owner(identity, socket.gethostname(), pid, _machine(), _started(pid) or "", slurm_job(os.environ))


def _state(directory: Path) -> tuple[int, int] | None:
    """Return what changes whenever the owner's file is renewed or replaced; None where there is no file."""
    with suppress(OSError):
        descriptor = open_regular(directory / OWNER_FILE, os.O_RDONLY)  # opened, so that NFS asks the server
        found = os.fstat(descriptor)
        os.close(descriptor)
        return found.st_ino, found.st_mtime_ns
    return None


def _machine() -> str:
    boot, container = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        container = f"{os.readlink('/proc/self/ns/pid')} {os.readlink('/proc/self/ns/net')}"
    return f"{socket.gethostname()} {boot} {container}"


def _started(pid: int) -> str | None:
    """Return when a process of this machine began; None where there is none, or only its exit code is left."""
    with suppress(OSError):
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return None if state in "ZX" else rest[18]
    if os.path.isdir("/proc/self"):
        return None
    import psutil  # takes time, and Linux does without it

    with suppress(psutil.Error):
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    return None
