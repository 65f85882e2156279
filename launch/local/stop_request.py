"""A signal to the launcher is a request that the run stop: remembered, and handed on once the run can hear it."""

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
    """Turns signals into the STOP file of a run, once that run's new attempt has begun.

    Before that, the directory may not exist, or belong to an attempt that `--fresh` is about to clear away: what was
    asked for is remembered. `now` is set by the second Ctrl-C.
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
        hangup_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup: the run outlives its terminal
        numbers = [number for number in STOP_SIGNALS if not (number == signal.SIGHUP and hangup_ignored)]
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run_has_started(self) -> bool:
        if not self._started:
            self._started = last_start(self._directory) not in (None, self._attempt_before)
        return self._started

    def deliver(self) -> None:
        """Ask the run to stop, where a signal asked for it."""
        if self._asked and not self._delivered:
            self._delivered = True
            if not (self._directory / "STOP").exists():  # or somebody has asked already
                write_stop_file(self._directory, self._asked)
                self._placed = True

    def withdraw(self) -> None:
        """Once the run has ended: take back a request that it did not come to honour, or the next one would."""
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
