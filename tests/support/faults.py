"""Something happens to one of the calls that change files: the process is killed there, or the call fails.

The calls are counted from 1 in the order in which they are made, so that each can be had in turn. What C code writes
by itself, as the logs are, is not among them.
"""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ranks

from trainlib.runs.attempt.pulse import PULSE_FILE  # which comes when it comes, from a thread
from trainlib.runs.files import durable

# What this software, pathlib, shutil and numpy change files through.
CALLS: list[tuple[object, str]] = [
    (durable.DurableFile, "__init__"),
    (durable.DurableFile, "write"),
    (durable.DurableFile, "flush"),
    *[(os, name) for name in ("fsync", "pwrite", "rename", "replace", "mkdir", "rmdir", "unlink", "open")],
    (io, "open"),
]

_RANDOM = re.compile(r"\.[0-9a-f]{16}\.(?=tmp)")  # in the name of a temporary file


@dataclass
class Calls:
    """The calls so far, by name and file; `at` numbers, from 1, those to which `happen` is done beforehand."""

    at: Callable[[int], bool] = lambda number: False
    happen: Callable[[str], None] = lambda name: None
    names: list[str] = field(default_factory=list)

    def count(self, name: str) -> None:
        self.names.append(name)
        if self.at(len(self.names)):
            self.happen(name)


def kill_here(name: str) -> None:
    """As at a power cut, but for what the kernel still holds: not a line of this process runs from here on."""
    os.kill(os.getpid(), signal.SIGKILL)


def first_of_each(names: list[str]) -> list[int]:
    """The number of the first call of each name: the many writes of one file are alike."""
    return [names.index(name) + 1 for name in dict.fromkeys(names)]


def fail_with(code: int) -> Callable[[str], None]:
    """The call fails with this errno."""

    def fail(name: str) -> None:
        raise OSError(code, os.strerror(code), name)

    return fail


@contextmanager
def counted(calls: Calls, within: Path) -> Iterator[Calls]:
    """Inside, the calls that change anything below the directory `within` are counted, and have happen what is to."""
    before = [(owner, name, getattr(owner, name)) for owner, name in CALLS]
    for owner, name, original in before:
        setattr(owner, name, _counting(name, original, calls, str(within.resolve())))
    try:
        yield calls
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)


def train(arguments: list[str], rank: int, first: int, last: int, code: int | None) -> int:
    """In each rank: train; in one, calls `first` to `last` below the run directories fail with this errno, or kill it.

    That rank lists its calls in `calls.txt`. With `last` 0, nothing happens to them.
    """
    if int(os.environ.get("RANK", "0")) != rank:
        return ranks.main(arguments)
    happen = kill_here if code is None else fail_with(code)
    calls = Calls(lambda number: first <= number <= last, happen)
    Path("runs").mkdir(exist_ok=True)
    with counted(calls, Path("runs")):
        done = ranks.main(arguments)
    Path("calls.txt").write_text("\n".join(calls.names))
    return done


def _counting(name: str, original: Callable[..., Any], calls: Calls, within: str) -> Callable[..., Any]:
    def call(subject: Any, *args: Any, **kwargs: Any) -> Any:
        path = _path_of(args[0] if name == "__init__" else subject, kwargs.get("dir_fd"))
        if path.startswith(within) and PULSE_FILE not in path and not (name == "open" and _only_reads(args, kwargs)):
            calls.count(f"{name} {_RANDOM.sub('.', path.removeprefix(within)).lstrip('/')}")
        return original(subject, *args, **kwargs)

    return call


def _only_reads(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an `os.open` or `io.open` cannot change anything."""
    mode = args[0] if args else kwargs.get("flags", kwargs.get("mode", "r"))
    return not mode & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(mode, int) else set(mode) <= set("rbt")


def _path_of(subject: Any, directory: int | None) -> str:
    """The path that a call is about: given as such, relative to an open directory, or as an open file."""
    if isinstance(subject, io.IOBase):
        subject = subject.fileno()
    if isinstance(subject, int):
        return os.readlink(f"/proc/self/fd/{subject}")
    folder = os.getcwd() if directory is None else os.readlink(f"/proc/self/fd/{directory}")
    return os.path.join(folder, os.fspath(subject))
