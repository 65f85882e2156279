"""The processes that talk to a mirror: `python -m trainlib.runs.mirror.program restore|follow`.

`restore` brings a run back before it starts; `follow` copies it while it trains. They are processes of their own, so
that whatever a library of a cloud does, waits for or breaks, no training step notices.

Standard input: a line of JSON, the `MirrorTask`; for `follow`, a line `finish SECONDS` when the training has ended.
Standard output: a line of JSON for each thing to tell, `[level, sentence]`. Exit code 0; EXIT_USER_ERROR, with its
message as the last line, where a start is refused; EXIT_UNREACHABLE where the mirror does not answer.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainlib.errors import EXIT_OK, UserError
from trainlib.runs.attempt.owner import Owner, read_owner
from trainlib.runs.mirror.copying import Copier
from trainlib.runs.mirror.lease import LEASE, Lease
from trainlib.runs.mirror.restoring import restore
from trainlib.runs.mirror.store import MirrorError, Store
from trainlib.runs.records.rows import METRICS_FILE
from trainlib.runs.terminal.streams import read_line

EXIT_UNREACHABLE = 69  # EX_UNAVAILABLE of sysexits.h
CONTACT_SECONDS = 60.0  # for a mirror to answer for the first time
POLL_SECONDS = 1.0
ROWS_SECONDS = 10.0  # between two copies of the rows, at least, where no checkpoint is new
ROWS_BYTES_PER_SECOND = 1e5
RETRY_SECONDS = 5.0
LAST_TRIES_SECONDS = 15.0  # at the end of the training, for a mirror that does not answer
_ORPHAN_POLL_SECONDS = 0.1
_told_to = 1  # the descriptor that the training reads


@dataclass(frozen=True)
class MirrorTask:
    """What is to be copied, and where to.

    run         path of the run directory
    from_step   of the attempt; 0 where the run begins
    training    id of the process that started this one, which ends with it
    fresh       to restore: nothing is brought back, and what is at the mirror is moved aside there
    owner       the process that trains, as owner.json names it; None to restore
    """

    run: str
    address: str
    from_step: int = 0
    fresh: bool = False
    owner: Mapping[str, Any] | None = None
    training: int = field(default_factory=os.getpid)


def main(arguments: list[str]) -> int:
    """Run the program; return its exit code."""
    job = MirrorTask(**json.loads(read_line()))
    threading.Thread(target=_end_with, args=[job.training], daemon=True).start()
    if arguments == ["restore"]:
        return _restore(job)
    with suppress(OSError):
        os.nice(10)  # whatever is left of the processors: the training comes first
    Follower(job, lambda: os.getppid() == job.training).run()
    return EXIT_OK


def tell(level: str, text: str) -> None:
    """Have the training log a sentence."""
    with suppress(OSError):
        os.write(_told_to, json.dumps([level, text]).encode() + b"\n")


def _restore(job: MirrorTask) -> int:
    reached = threading.Event()
    threading.Thread(target=_give_up_after, args=[reached], daemon=True).start()
    try:
        store = Store(job.address, Path(job.run).name)
        store.read(LEASE)
        reached.set()
        restore(Path(job.run), store, tell, fresh=job.fresh)
    except UserError as error:
        tell("error", str(error))
        return error.exit_code
    except MirrorError as error:
        tell("error", str(error))
        return EXIT_UNREACHABLE
    return EXIT_OK


def _give_up_after(reached: threading.Event) -> None:
    if not reached.wait(CONTACT_SECONDS):
        tell("error", f"no answer within {CONTACT_SECONDS:.0f} s")
        os._exit(EXIT_UNREACHABLE)


class Follower:
    """Copies a run to its mirror while it trains, again and again where the mirror does not answer."""

    def __init__(self, job: MirrorTask, training_lives: Callable[[], bool]):
        self._job, self._run = job, Path(job.run)
        self._owner = Owner(**(job.owner or {}))
        self._training_lives = training_lives
        self._lease: Lease | None = None
        self._copier: Copier | None = None
        self._is_away = False
        self._copied = self._tried = 0.0

    def run(self) -> None:
        """Follow the training to its end."""
        try:
            while (word := _word()) is None and self._training_lives():
                self._try()
            if word and self._training_lives():
                self._finish(float(word.split()[1]))
        except UserError as error:  # somebody else's run is there
            tell("warning", f"{error}. Training goes on, and nothing more is copied")
            self._release()

    def _try(self, *, at_once: bool = False) -> bool:
        """Do what is due; return False where the mirror does not answer, which is told once."""
        now = time.monotonic()
        if self._is_away and not at_once and now - self._tried < RETRY_SECONDS:
            return False
        self._tried = now
        try:
            self._connect()
            self._copy(now, at_once)
        except MirrorError as error:
            if not self._is_away:
                tell(
                    "warning",
                    f"mirror: {self._job.address} cannot be reached ({error}); training goes on, and what is new is "
                    "copied once it can be reached again",
                )
            self._is_away = True
            if self._lease is not None:
                self._lease.lapse()  # when it is back, all is to be looked at again
            return False
        if self._is_away:
            tell("info", f"mirror: {self._job.address} can be reached again; copying goes on")
        self._is_away = False
        return self._lease is not None and self._lease.is_fresh

    def _connect(self) -> None:
        """Hold the mirror, and know what is there: for the first time, or after it could not be held for a while."""
        if self._lease is not None and self._lease.is_fresh and self._copier is not None:
            return
        if self._lease is None:
            self._lease = Lease(Store(self._job.address, self._run.name), self._owner)
        self._lease.take()
        if self._copier is not None:
            self._copier.learn()
            return
        # By connections of its own: the lease's thread waits for no large file, and no library sees two threads.
        copier = Copier(self._run, Store(self._job.address, self._run.name), self._may_go_on)
        copier.begin(self._job.from_step)
        self._copier = copier
        tell("info", f"mirror: copying to {self._lease.store.name} in the background")

    def _copy(self, now: float, at_once: bool) -> None:
        assert self._copier is not None
        pause = ROWS_SECONDS
        with suppress(OSError):  # they are copied as a whole: the more, the less often
            pause = max(pause, (self._run / METRICS_FILE).stat().st_size / ROWS_BYTES_PER_SECOND)
        if at_once or self._copier.has_new_checkpoint() or now - self._copied > pause:
            self._copied = now
            self._copier.copy()

    def _may_go_on(self) -> bool:
        assert self._lease is not None
        return self._training_lives() and read_owner(self._run) == self._owner and self._lease.is_fresh

    def _finish(self, seconds: float) -> None:
        """Copy the rest, and tell what could not be copied."""
        began = time.monotonic()
        while not self._try(at_once=True) and time.monotonic() - began < min(seconds, LAST_TRIES_SECONDS):
            time.sleep(POLL_SECONDS)
        missing = self._copier.missing() if self._copier is not None else ["everything"]
        if missing:
            tell(
                "warning",
                f"mirror: not everything is at {self._job.address}; missing there: {', '.join(missing)}; "
                f"all of it is in {self._run}",
            )
        self._release()

    def _release(self) -> None:
        if self._lease is not None:
            with suppress(MirrorError):
                self._lease.release()


def _end_with(parent: int) -> None:
    """End at once where the training was killed: what it goes on with must not be written over by this process."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_POLL_SECONDS)
    os._exit(EXIT_OK)


def _word() -> str | None:
    """Return what the training sends, nothing ("") once it is gone, or None after some time."""
    return read_line() if select.select([sys.stdin], [], [], POLL_SECONDS)[0] else None


if __name__ == "__main__":
    _told_to = os.dup(1)
    os.dup2(2, 1)  # what a cloud's library prints is no sentence for the training
    code = main(sys.argv[1:])
    os._exit(code)  # past threads of a cloud's library
