"""The process that all ranks of the tests are forked from: itself a fork of the one that runs tests, made before any.

So neither the process of the ranks nor a rank imports torch and this project again.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import importlib
import logging
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import NoReturn

PRELOADED = (
    "pytest",
    "ranks",
    "torch",
    "accelerate",
    "torchvision",
    "trainlib.train",
    "trainlib.training.session",
    "trainlib.training.hooks.tracking.curves",
    "torch.distributed.algorithms.ddp_comm_hooks",
    "numpy.ctypeslib",
    "psutil",
)
OF_CALLER = "TRAINLAUNCH_CACHE"  # a variable that conftest.py sets later
LENGTH, NUMBER = struct.Struct("Q"), struct.Struct("i")


class Process:
    """A process that the server forked."""

    def __init__(self, pid: int, report: int):
        self.pid = pid
        self.report = os.fdopen(report, "rb", buffering=0)  # holds the exit code, once it has ended
        self._code: int | None = None

    @property
    def exitcode(self) -> int | None:
        """Its exit code, or the number of the signal that ended it, negative; None while it runs."""
        if self._code is None and select.select([self.report], [], [], 0)[0]:
            self._code = NUMBER.unpack(self.report.read(NUMBER.size))[0]
        return self._code

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        """Kill it and wait for its end."""
        if not self.is_alive():
            return
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self.pid, signal.SIGKILL)
        select.select([self.report], [], [])


class RankServer:
    """A fork of this process as it is now, which forks a process for each call of `start`, until this one is gone."""

    def __init__(self) -> None:
        for name in PRELOADED:
            importlib.import_module(name)
        gc.collect()
        gc.freeze()
        self._requests, theirs = socket.socketpair()
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of Python 3.12: there are threads
            pid = os.fork()
        if not pid:
            try:
                self._requests.close()
                _serve(theirs)
            except BaseException:  # noqa: BLE001 - the boundary of the process
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()

    def start(self, function: Callable[..., object], *args: object) -> Process:
        """Fork a process that calls a function of a module, and ends."""
        request = pickle.dumps((os.environ.get(OF_CALLER), sys.path, pickle.dumps((function, args))))
        report, theirs = os.pipe()
        socket.send_fds(self._requests, [LENGTH.pack(len(request))], [theirs])
        os.close(theirs)
        self._requests.sendall(request)
        return Process(NUMBER.unpack(_receive(self._requests, NUMBER.size))[0], report)


@functools.cache
def rank_server() -> RankServer:
    """Return the server of this process; the first call makes it."""
    return RankServer()


def _receive(connection: socket.socket, length: int) -> bytes:
    return connection.recv(length, socket.MSG_WAITALL)


def _serve(requests: socket.socket) -> NoReturn:
    """Fork and report until the other end of the connection is closed."""
    _be_like_new(requests.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, waking = socket.socketpair()
    waking.setblocking(False)
    signal.set_wakeup_fd(waking.fileno())
    reports: dict[int, int] = {}
    while True:
        if woken in select.select([requests, woken], [], [])[0]:
            woken.recv(1024)
            _report_ended(reports)
            continue
        head, files, _, _ = socket.recv_fds(requests, LENGTH.size, 1)
        if not head:
            for rank in reports:
                os.kill(rank, signal.SIGKILL)
            os._exit(0)
        request = _receive(requests, LENGTH.unpack(head)[0])
        _prepare(request)
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            for inherited in (requests.fileno(), woken.fileno(), waking.fileno(), *files, *reports.values()):
                os.close(inherited)
            _call(request)
        reports[pid] = files[0]
        requests.sendall(NUMBER.pack(pid))


def _prepare(request: bytes) -> None:
    """Import here what the rank, and others after it, would import anew."""
    import warm  # noqa: F401 - of all ranks, once the first one is asked for

    if b"timm/" in request:  # the name of a model
        import timm  # noqa: F401


def _report_ended(reports: dict[int, int]) -> None:
    while reports:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        report = reports.pop(pid)
        with contextlib.suppress(BrokenPipeError):  # nobody waits for it
            os.write(report, NUMBER.pack(os.waitstatus_to_exitcode(status)))
        os.close(report)


def _call(request: bytes) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cache, sys.path[:], job = pickle.loads(request)
    if cache is not None:
        os.environ[OF_CALLER] = cache
    function, args = pickle.loads(job)
    function(*args)
    os._exit(0)


def _be_like_new(connection: int) -> None:
    """Undo what pytest and its plugins did in the process that this is a fork of; leave its files and pipes alone."""
    null = os.open(os.devnull, os.O_RDWR)
    for name in os.listdir("/dev/fd"):
        if int(name) not in (1, 2, connection, null):
            os.dup2(null, int(name), inheritable=name == "0")
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__
    sys.excepthook, sys.unraisablehook = sys.__excepthook__, sys.__unraisablehook__
    threading.excepthook = threading.__excepthook__
    sys.settrace(None)  # of coverage
    faulthandler.disable()
    logging.getLogger().handlers.clear()
    importlib.reload(warnings)
