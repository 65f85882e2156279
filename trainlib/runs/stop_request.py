"""Asking a run to stop: stop signals and the STOP file set a flag, which all ranks look at between two steps."""

from __future__ import annotations

import logging
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

from trainlib.errors import EXIT_INTERRUPTED
from trainlib.regular_files import read_regular
from trainlib.runs.files import write_atomically
from trainlib.runs.reasons import EndCode, EndReason, reason_of_stop_file

logger = logging.getLogger("trainlib.runs")

# On Windows some are missing, and `launch --help` works there.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_OF_A_TERMINAL = ("SIGINT", "SIGHUP")
_MAX_REASON_CHARACTERS = 200


def ignore_stop_signals() -> None:
    """Ignore every stop signal from now on, in a process that is about to end, or whose parent decides when it does."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def write_stop_file(directory: Path, asked_by: str) -> None:
    """Ask the run in a directory to stop.

    asked_by   the name of a signal that is passed on, or what a person used, such as `launch stop`
    """
    write_atomically(directory / "STOP", f"{asked_by}\n")  # whole when the run sees it


def read_stop_file(path: Path) -> EndReason:
    """Return why a run is to stop, as its STOP file says; a file that cannot be read counts as a person's."""
    text = ""
    with suppress(OSError):
        text = read_regular(path, 1 << 16).decode(errors="replace").partition("\n")[0][:_MAX_REASON_CHARACTERS]
    return reason_of_stop_file(text)


class StopFlag:
    """A flag that is set when a stop signal comes or the STOP file appears; `reason` then says which.

    Installed before anything slow is imported, so that no signal is lost. A second Ctrl-C ends the process at once,
    with exit code 130.
    """

    def __init__(self) -> None:
        self.reason: EndReason | None = None
        self._stop_file: Path | None = None
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Catch the stop signals. Only the main thread can; in another one, only the STOP file sets the flag."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if number.name in _OF_A_TERMINAL and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # nohup, and shells without job control, ignore these on purpose
                self._previous[number] = signal.signal(number, self._on_signal)

    def uninstall(self) -> None:
        """Put back the signal handlers that `install` replaced."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()

    def watch(self, stop_file: Path) -> None:
        """Set the flag as soon as this file exists."""
        self._stop_file = stop_file

    def ask(self, reason: EndReason) -> None:
        """Set the flag, as a signal would; the first reason stays."""
        self.reason = self.reason or reason

    def requested(self) -> bool:
        """Return True if this process was asked to stop."""
        if self.reason is None and self._stop_file is not None and os.path.exists(self._stop_file):
            self.reason = read_stop_file(self._stop_file)
        return self.reason is not None

    def acknowledge(self) -> None:
        """Remove the STOP file once the checkpoint is safe: it must not stop the next attempt."""
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
            if self.reason is not None and self.reason.sentence == name:
                os._exit(EXIT_INTERRUPTED)
            with suppress(OSError):  # the terminal may be what went away
                os.write(2, b"\nstopping at the next step, with a checkpoint; Ctrl-C again ends at once\n")
        self.reason = EndReason(EndCode.SIGNAL, name)
