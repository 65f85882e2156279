"""Being asked to stop: signals and the STOP file only set a flag; the ranks agree on it at a step boundary."""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

from trainlib.errors import EXIT_INTERRUPTED

logger = logging.getLogger("trainlib.distributed.stop_consensus")

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_OF_A_TERMINAL = (signal.SIGINT, signal.SIGHUP)
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

    def acknowledge(self) -> None:
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
