"""Passes stop signals that come to the launcher on to the run, through its STOP file."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from trainlib.runs.attempt.owner import read_owner
from trainlib.runs.attempt.record import last_start
from trainlib.runs.attempt.stop_request import STOP_SIGNALS, is_meant_for, mark_of, write_stop_file


class StopRequest:
    """Writes the STOP file of a run when a stop signal comes, as soon as rank 0 owns the run directory.

    Until then the signal is only remembered: the directory may not exist, or belong to another start. A second Ctrl-C
    sets `now`. Where the run is a single process, `child`, it gets the signals themselves instead.

    earlier   the mark of the STOP file that was there before; see `mark_of`
    child     the process that trains; None where there are several, or none at the moment
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stop_file = directory / "STOP"
        self.earlier = mark_of(self._stop_file)
        self.child: int | None = None
        self._before: dict[int, Any] = {}  # signal: its handler
        self._asked: str | None = None  # the signal's name
        self.new_start()
        self._delivered = False
        self._placed = ""  # the mark of the STOP file that was written
        self.now = False

    def new_start(self) -> None:
        """Forget how far the start before came: another one begins."""
        self._owner_before = read_owner(self._directory)
        self._attempt_before = last_start(self._directory)
        self._begun = False

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Context manager: catch the stop signals; put their handlers back on exit."""
        hangup_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup: the run outlives its terminal
        numbers = [number for number in STOP_SIGNALS if not (number == signal.SIGHUP and hangup_ignored)]
        self._before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            self.put_back_handlers()

    def put_back_handlers(self) -> None:
        """Handle the signals as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """True once a stop signal has come."""
        return self._asked is not None

    def run_has_begun(self) -> bool:
        """Return True if the new attempt has begun, by its line in attempts.jsonl."""
        if not self._begun:
            self._begun = last_start(self._directory) not in (None, self._attempt_before)
        return self._begun

    def deliver(self) -> None:
        """Write the STOP file, once, if a signal has come and the run has an owner."""
        if not self._asked or self._delivered:
            return
        owner = read_owner(self._directory)
        if owner is None or owner == self._owner_before:
            return
        self._delivered = True
        if not is_meant_for(self._stop_file, owner.stop_token, self.earlier):  # else somebody has asked already
            write_stop_file(self._directory, self._asked, owner.stop_token)
            self._placed = mark_of(self._stop_file)

    def withdraw(self) -> None:
        """Remove the STOP file, once the run has ended: if the run did not come to it, the next attempt would."""
        if self._placed and mark_of(self._stop_file) == self._placed:
            with suppress(OSError):
                self._stop_file.unlink()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.child is not None:
            self._asked = self._asked or signal.Signals(number).name
            with suppress(ProcessLookupError):
                os.kill(self.child, number)
        elif self._asked and number == signal.SIGINT:
            self.now = True
        elif not self._asked:
            self._asked = name = signal.Signals(number).name
            with suppress(OSError):  # the terminal may be what went away
                os.write(2, f"\n{name}: stopping at the next step, with a checkpoint; Ctrl-C kills\n".encode())
