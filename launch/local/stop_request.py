"""Passes stop signals that come to the launcher on to the run, through its STOP file."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from trainlib.runs.attempts import last_start
from trainlib.runs.stop_request import STOP_SIGNALS, write_stop_file


class StopRequest:
    """Writes the STOP file of a run when a stop signal comes, as soon as the run's new attempt has begun.

    Before that, the directory may not exist, or belong to a run that `--fresh` is about to move aside: until then the
    signal is only remembered. A second Ctrl-C sets `now`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._attempt_before = last_start(directory)
        self._started = False
        self._asked: str | None = None  # the signal's name
        self._delivered = False
        self._placed = False
        self.now = False

    @contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Context manager: catch the stop signals; put their handlers back on exit."""
        hangup_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup: the run outlives its terminal
        numbers = [number for number in STOP_SIGNALS if not (number == signal.SIGHUP and hangup_ignored)]
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """True once a stop signal has come."""
        return self._asked is not None

    def run_has_started(self) -> bool:
        """Return True if the new attempt has begun, by its line in attempts.jsonl."""
        if not self._started:
            self._started = last_start(self._directory) not in (None, self._attempt_before)
        return self._started

    def deliver(self) -> None:
        """Write the STOP file, once, if a signal has come."""
        if self._asked and not self._delivered:
            self._delivered = True
            if not (self._directory / "STOP").exists():  # or somebody has asked already
                write_stop_file(self._directory, self._asked)
                self._placed = True

    def withdraw(self) -> None:
        """Remove the STOP file, once the run has ended: if the run did not come to it, the next attempt would."""
        if self._placed:
            with suppress(OSError):
                (self._directory / "STOP").unlink()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            self.now = True
        elif not self._asked:
            self._asked = name = signal.Signals(number).name
            with suppress(OSError):  # the terminal may be what went away
                os.write(2, f"\n{name}: stopping at the next step, with a checkpoint; Ctrl-C kills\n".encode())
