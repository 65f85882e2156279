"""The agent: the process of `accelerate launch`, which is the parent of this machine's ranks, and its report."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from launch.local.outcome.failure import AgentReport
from launch.local.start.command import Command, accelerate_launch

AGENT_MODULE = "trainlib.distributed.rendezvous.agent"


class Agent:
    """A started command, and what `accelerate launch` reports while it runs.

    process   the child process
    report    what it has reported up to the last call of `wait`
    """

    def __init__(self, command: Command, *, environment: Mapping[str, str] | None = None, **options: Any):
        """Start the command.

        environment   variables in addition to the command's
        options       further arguments of subprocess.Popen
        """
        self.report = AgentReport()
        self._unfinished = b""  # the beginning of a line
        self._asked: dict[int, float] = {}  # process to close: when the report of it was read
        self._descriptor, writing_end = os.pipe()
        try:
            self.process = subprocess.Popen(
                with_report(command.words, writing_end),
                env={**command.variables(os.environ), **(environment or {})},
                stdin=subprocess.DEVNULL,
                pass_fds=[writing_end],
                **options,
            )
        finally:
            os.close(writing_end)
        os.set_blocking(self._descriptor, False)

    def _read_report(self) -> None:
        with suppress(BlockingIOError):
            while block := os.read(self._descriptor, 1 << 16):
                *lines, self._unfinished = (self._unfinished + block).split(b"\n")
                for line in lines:
                    self.report.add_line(line.decode("utf-8", errors="replace"))
        for pid in self.report.closing:
            self._asked.setdefault(pid, time.monotonic())

    def wait(self, seconds: float) -> int | None:
        """Wait at most this long for the process to end, and bring `report` up to date; return its exit code."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self._read_report()
        return self.process.returncode

    def overdue_ranks(self, seconds: float) -> list[int]:
        """Return the processes of ranks that have not ended this long after they were asked to.

        A rank that waits for the others, or is stopped, does not see the agent's SIGTERM, and the agent waits 30 s.
        """
        now = time.monotonic()
        return [pid for pid, asked in self._asked.items() if now - asked > seconds]


def with_report(words: Sequence[str], descriptor: int) -> tuple[str, ...]:
    """Return the words of a command with `accelerate launch` replaced by the same program that writes a report.

    descriptor   file descriptor that the report is written to
    Other commands stay as they are.
    """
    accelerate = accelerate_launch(sys.executable)
    if tuple(words[: len(accelerate)]) != accelerate:
        return tuple(words)
    return (sys.executable, "-P", "-m", AGENT_MODULE, str(descriptor), *words[len(accelerate) :])
