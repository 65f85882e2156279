"""Being asked to stop: signals and the STOP file only set a flag; the ranks agree on it at a step boundary."""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Protocol

from trainlib.errors import EXIT_INTERRUPTED

logger = logging.getLogger("trainlib.stopping")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_OF_A_TERMINAL = (signal.SIGINT, signal.SIGHUP)
RANKS_AT_EVERY_STEP = 16
_MAX_REASON_CHARACTERS = 200


class StopFlag:
    """Set by a signal or by the STOP file. Installed before anything slow is imported, so that no signal is lost.

    `reason` says who asked: a signal's name, what the STOP file says, or "STOP file" where that is empty. A second
    Ctrl-C ends the process at once with 130.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._stop_file: Path | None = None
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Catch the stop signals; only the main thread can, and elsewhere the STOP file is all there is."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if number in _OF_A_TERMINAL and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # nohup, and shells without job control, ignore these on purpose
                self._previous[number] = signal.signal(number, self._on_signal)

    def uninstall(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def watch(self, stop_file: Path) -> None:
        self._stop_file = stop_file

    def ask(self, reason: str) -> None:
        """Ask to stop, as a signal would."""
        self.reason = self.reason or reason

    def requested(self) -> bool:
        if self.reason is None and self._stop_file is not None and os.path.exists(self._stop_file):
            self.reason = _first_line(self._stop_file) or "STOP file"
        return self.reason is not None

    def honoured(self) -> None:
        """The checkpoint is safe: the STOP file has done its work and must not stop the next start."""
        if self._stop_file is None:
            return
        try:
            self._stop_file.unlink(missing_ok=True)
        except OSError as error:  # no reason to fail what is done
            logger.warning(
                "%s could not be removed (%s); remove it before the run is started again", self._stop_file, error
            )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            if self.reason == name:
                os._exit(EXIT_INTERRUPTED)
            with suppress(OSError):  # the terminal may be what went away
                os.write(2, b"\nstopping at the next step, with a checkpoint; Ctrl-C again ends at once\n")
        self.reason = name


def _first_line(stop_file: Path) -> str:
    """Who asked, as the file says; empty where it does not, or cannot be read."""
    with suppress(OSError), stop_file.open(encoding="utf-8", errors="replace") as file:
        return file.readline(_MAX_REASON_CHARACTERS).strip()
    return ""


class Channel(Protocol):
    """What ranks tell each other on: each hands in a flag, and takes, later, whether anybody's was up."""

    def size(self) -> int: ...

    def hand_in(self, *, asked: bool) -> None: ...

    def take(self) -> bool: ...


class Agreement:
    """Whether any rank was asked to stop, told to all ranks at the same step without making them wait.

    At a step boundary a rank hands in its own flag, which travels beside the steps that follow, and takes what was
    handed in before: everyone learns of a request at the same boundary. Up to 16 ranks do so at each boundary, and
    learn of it at most one step late; W ranks at every W / 16th, as gloo's all-reduce goes around a ring of all of
    them, which takes longer than a short step from about 20 ranks on.
    """

    def __init__(self, flag: StopFlag, channel: Channel | None):
        """channel: None = this process alone"""
        self._flag = flag
        self._channel = channel
        self._every = 1 if channel is None else max(1, channel.size() // RANKS_AT_EVERY_STEP)
        self._boundaries = 0
        self._is_under_way = False

    def reached(self) -> bool:
        """Call once at every step boundary, on every rank."""
        if self._channel is None:
            return self._flag.requested()
        self._boundaries += 1
        if self._boundaries % self._every:
            return False
        agreed = self.drain()
        self._channel.hand_in(asked=self._flag.requested())
        self._is_under_way = True
        return agreed

    def drain(self) -> bool:
        """The answer under way, if there is one; leaves none."""
        if self._channel is None or not self._is_under_way:
            return False
        self._is_under_way = False
        return self._channel.take()
