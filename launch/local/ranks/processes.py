"""The processes below a launcher: how they learn of its death, how they are killed, and which of them are frozen."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from contextlib import suppress

import psutil

from launch.local.start.command import STOP_SECONDS
from trainlib.runs.attempt.stop_request import STOP_SIGNALS

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_GONE_SECONDS = 5.0  # for the kernel to take a killed process apart
_LOOK_SECONDS = 1.0  # between two looks at which processes are frozen
_LIST_SECONDS = 5.0  # between two looks at which processes there are


def adopt_orphans() -> None:
    """Let ranks whose agent is killed become children of this process."""
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def prepare_agent() -> None:
    """In the child: ignore every signal but the one that the kernel sends when the launcher dies, however it does.

    The agent passes that on to its ranks, wherever they are in starting or training, and kills those that do not stop.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGHUP else signal.SIG_IGN)
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGHUP)


def end_with_parent(parent: int) -> None:
    """In the child: be killed by the kernel when the process `parent` dies, however it does."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(128 + signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def end_orphans() -> None:
    """End the ranks whose agent was killed as it would have done: ask, wait for their checkpoint, kill."""
    ranks = psutil.Process().children()
    for rank in ranks:
        with suppress(psutil.NoSuchProcess):
            rank.terminate()
    _, deaf = psutil.wait_procs(ranks, timeout=STOP_SECONDS)
    kill(deaf)


def kill_tree(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and all below it; each rank is in a session of its own, so no process group holds them all."""
    ranks = descendants(child.pid)
    child.kill()
    kill(ranks)
    child.wait()


def kill_below(child: subprocess.Popen[bytes], pids: Collection[int]) -> None:
    """Kill these processes, as far as they are still below the child."""
    if pids:
        kill([process for process in descendants(child.pid) if process.pid in pids])


def descendants(pid: int) -> list[psutil.Process]:
    """Return all processes below this one."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill these processes, and wait until they are gone, with the locks that they held."""
    killed = list(processes)
    for process in killed:
        with suppress(psutil.NoSuchProcess):  # psutil knows a number that another process has taken over
            process.kill()
    psutil.wait_procs(killed, timeout=_GONE_SECONDS)


class FrozenProcesses:
    """Finds processes that are frozen, as by SIGSTOP: they cannot say so themselves.

    pid       the child; it and its own children, the ranks, are looked at
    seconds   a process that is frozen for longer is killed; None: none is
    killed    those that were
    """

    def __init__(self, pid: int, seconds: float | None):
        self.killed: set[int] = set()
        self._pid, self._limit = pid, seconds
        self._family: list[psutil.Process] = []
        self._listed = self._looked = float("-inf")
        self._seconds: dict[int, float] = {}

    def look(self, *, at_once: bool = False) -> None:
        """Kill what is frozen for too long; to be called often. Time in which this process was frozen is not counted.

        at_once   the run ends anyway: whoever is frozen would only keep it waiting
        """
        now = time.monotonic()
        if self._limit is None or (now - self._looked < _LOOK_SECONDS and not at_once):
            return
        passed = min(now - self._looked, 2 * _LOOK_SECONDS)
        self._looked = now
        if now - self._listed > _LIST_SECONDS:
            self._listed = now
            with suppress(psutil.NoSuchProcess):
                child = psutil.Process(self._pid)
                self._family = [child, *child.children()]
        for process in self._family:
            if not _is_frozen(process):
                self._seconds[process.pid] = 0.0
                continue
            self._seconds[process.pid] = self._seconds.get(process.pid, 0.0) + passed
            if at_once or self._seconds[process.pid] > self._limit:
                self.killed.add(process.pid)
                with suppress(psutil.NoSuchProcess):
                    process.kill()  # and not waited for: it may be a child, whose end somebody else waits for


def _is_frozen(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_STOPPED)
    return False
