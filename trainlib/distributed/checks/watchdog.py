"""The watchdog: ends a process that hangs, or whose launcher died, so that it does not hold a GPU for nothing."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TextIO

from trainlib.errors import EXIT_FAILURE, EXIT_HANG
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.runs.records.reasons import LAUNCHER_DIED

POLL_SECONDS = 0.5
ORPHAN_SECONDS = 7.0  # to write a checkpoint and end, once the launcher is gone


class Watchdog:
    """A thread that ends this process when no heartbeat comes for `hang_seconds`.

    The stacks of all threads go to `log` then, and the process ends with EXIT_HANG. A rank that torch's elastic agent
    started is also asked to stop when that agent is gone, and ended where it does not.

    hang_seconds   None: a hang is not looked for
    """

    def __init__(
        self, hang_seconds: float | None, flag: StopFlag, log: TextIO, environ: Mapping[str, str] = os.environ
    ):
        self._hang_seconds = hang_seconds
        self._flag = flag
        self._log = log
        self._agent = os.getppid() if "TORCHELASTIC_RUN_ID" in environ else None
        self._idle_seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def heartbeat(self) -> None:
        """Tell the watchdog that a step, or a batch of an evaluation, was finished."""
        self._idle_seconds = 0.0

    def __enter__(self) -> Watchdog:
        self.heartbeat()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        orphan_since: float | None = None
        before = time.monotonic()
        while not self._over.wait(POLL_SECONDS):
            now = time.monotonic()
            # Time in which this thread did not run either is not counted: then the whole process was suspended.
            self._idle_seconds += min(now - before, 2 * POLL_SECONDS)
            before = now
            if self._hang_seconds is not None and self._idle_seconds > self._hang_seconds:
                self._end(f"no step was finished for {self._hang_seconds:g} s (train.hang_seconds)", EXIT_HANG)
            if self._agent is not None and os.getppid() != self._agent:
                if orphan_since is None:
                    orphan_since = now
                    self._flag.ask(LAUNCHER_DIED)
                elif now - orphan_since > ORPHAN_SECONDS:
                    self._end("the launcher died, and the ranks did not come to stop together", EXIT_FAILURE)

    def _end(self, reason: str, code: int) -> None:
        in_file = getattr(self._log, "has_begun", True)  # before an attempt begins, its log is lost with the process
        stream = self._log if in_file else sys.stderr
        with suppress(OSError):  # a log that cannot be written, on a full disk, must not keep this rank alive
            stream.write(f"{reason}; this rank ends here, its last checkpoint is good\n")
            stream.flush()
            if code == EXIT_HANG:
                faulthandler.dump_traceback(stream, all_threads=True)
        os._exit(code)
