"""Asking a run to stop: stop signals and the STOP file set a flag, which all ranks look at between two steps."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from trainlib.errors import EXIT_INTERRUPTED
from trainlib.platform.regular_files import read_regular
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.records.reasons import EndCode, EndReason, reason_of_stop_file

logger = logging.getLogger("trainlib.runs")

# On Windows some are missing, and `launch --help` works there.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_OF_A_TERMINAL = ("SIGINT", "SIGHUP")
_MAX_REASON_CHARACTERS = 200
_MEANT_FOR = "for "


def ignore_stop_signals() -> None:
    """Ignore every stop signal from now on, in a process that is about to end, or whose parent decides when it does."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def write_stop_file(directory: Path, asked_by: str, token: str | None = None) -> None:
    """Ask the run in a directory to stop.

    asked_by   the name of a signal that is passed on, or what a person used, such as `launch stop`
    token      the `stop_token` of the owner who is asked: no later one is; None: whoever trains
    """
    asked = f"{asked_by}\n" + (f"{_MEANT_FOR}{token}\n" if token else "")
    write_atomically(directory / "STOP", asked)  # whole when the run sees it


def read_stop_file(path: Path) -> EndReason:
    """Return why a run is to stop, as its STOP file says; a file that cannot be read counts as a person's."""
    return reason_of_stop_file(_lines(path)[0])


def mark_of(path: Path) -> str:
    """Return what tells this very file from one that is written later; empty where there is none."""
    with suppress(OSError):
        found = path.stat()
        return f"{found.st_ino}:{found.st_mtime_ns}"
    return ""


def is_meant_for(path: Path, token: str | None, earlier: str = "") -> bool:
    """Return True if the STOP file exists and asks this start, and not one that is over.

    token     this start's own
    earlier   the mark of the file that was there before this start: nobody can have meant this start with it
    """
    mark = mark_of(path)
    named = _lines(path)[1].removeprefix(_MEANT_FOR).strip()
    return mark != "" and (named == token if named else mark != earlier)


def _lines(path: Path) -> tuple[str, str]:
    """Return who asked and whom, as the STOP file says; empty where it does not."""
    with suppress(OSError):
        asked_by, asked, *_ = [*read_regular(path, 1 << 16).decode(errors="replace").split("\n"), ""]
        return asked_by[:_MAX_REASON_CHARACTERS], asked if asked.startswith(_MEANT_FOR) else ""
    return "", ""


class StopFlag:
    """A flag that is set when a stop signal comes or the STOP file appears; `reason` then says which.

    The first reason stays, but for a person's request: it decides, whatever asks as well, whether SLURM starts the run
    again. Installed before anything slow is imported, so that no signal is lost. A second Ctrl-C ends the process at
    once, with exit code 130.

    keeps_process   True in a notebook, whose process has more to do: a second interrupt is a KeyboardInterrupt
    """

    def __init__(self, *, keeps_process: bool = False) -> None:
        self._keeps_process = keeps_process
        self.reason: EndReason | None = None
        self._interrupted = False
        self._stop_file: Path | None = None
        self._is_own: Callable[[], bool] = lambda: True
        self._token: str | None = None
        self._earlier = ""
        self._ignored = ""  # the mark of one that could not be removed
        self._seen = ""  # the mark of the STOP file that was honoured
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

    def watch(
        self,
        stop_file: Path,
        token: str | None = None,
        earlier: str = "",
        is_own: Callable[[], bool] = lambda: True,
    ) -> None:
        """Set the flag as soon as this file exists and is meant for this start; see `is_meant_for`.

        is_own   False where the file must not be removed: before training begins, and where it is another run's by now
        """
        self._stop_file, self._token, self._earlier, self._is_own = stop_file, token, earlier, is_own

    def ask(self, reason: EndReason) -> None:
        """Set the flag, as a signal would; the first reason stays."""
        self.reason = self.reason or reason

    def requested(self) -> bool:
        """Return True if this process was asked to stop."""
        if self._stop_file is not None and os.path.exists(self._stop_file):
            self._look(self._stop_file)
        return self.reason is not None

    def _look(self, stop_file: Path) -> None:
        """Take in what the STOP file says, or remove one that is not meant for this start."""
        mark = mark_of(stop_file)
        if mark in (self._seen, self._ignored):
            return
        if not is_meant_for(stop_file, self._token, self._earlier):
            self._remove(mark, "%s was left over from an earlier start: it was removed, and not heeded")
            return
        self._seen = mark
        found = read_stop_file(stop_file)
        if self.reason is None or found.code is EndCode.STOP_FILE:
            self.reason = found

    def acknowledge(self) -> None:
        """Remove the STOP file that was heeded, once the checkpoint is safe: it must not stop the next attempt."""
        if self._seen:
            self._remove(self._seen)

    def _remove(self, mark: str, words: str | None = None) -> None:
        """Remove the STOP file, if it is still this one, and log these words."""
        if self._stop_file is None or mark_of(self._stop_file) != mark or not self._is_own():
            return
        try:
            self._stop_file.unlink(missing_ok=True)
            if words:
                logger.info(words, self._stop_file)
        except OSError as error:  # no reason to fail what is done
            self._ignored = mark
            logger.warning(
                "%s could not be removed (%s); remove it before the run is started again", self._stop_file, error
            )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT:
            if self._interrupted and self._keeps_process:
                raise KeyboardInterrupt
            if self._interrupted:
                os._exit(EXIT_INTERRUPTED)
            self._interrupted = True
            with suppress(OSError):  # the terminal may be what went away
                os.write(2, b"\nstopping at the next step, with a checkpoint; Ctrl-C again ends at once\n")
        self.ask(EndReason(EndCode.SIGNAL, name))
