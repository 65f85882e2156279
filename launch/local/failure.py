"""How several ranks ended, read from what `accelerate launch` writes on its standard error.

It ends with 1 whatever its ranks ended with; their own exit codes are only in the report of torch's elastic agent.
All of this is pure: text in, facts out.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainlib.errors import EXIT_CONNECTION_LOST, EXIT_USER_ERROR

_FAILURE = re.compile(
    r"^ +host +: (?P<host>\S+)\n"
    r"^ +rank +: (?P<rank>\d+) \(local_rank: \d+\)\n"
    r"^ +exitcode +: (?P<code>-?\d+) \(pid: (?P<pid>\d+)\)",
    re.MULTILINE,
)
_CLOSING = re.compile(r"Sending process (\d+) closing signal")
_AGENT_LOG = re.compile(r"^[IWEC]\d{4} [\d:.]+ \d+ \S*torch/distributed/")
_PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use|another process is utilizing it", re.IGNORECASE)
_TRACEBACK = "Traceback (most recent call last):"
_AGENT_FRAME = re.compile(r'^ +File ".*[/\\]accelerate[/\\]commands[/\\]|^ +File ".*[/\\]bin[/\\]accelerate"')

# A process that dies of these was not told to: no other rank's death is the reason.
_CRASHES = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}


@dataclass(frozen=True)
class RankFailure:
    """The rank that ended the run.

    exit_code   as subprocess gives it: negative for a signal
    """

    rank: int
    host: str
    exit_code: int
    pid: int

    @property
    def shell_code(self) -> int:
        """The exit code as a shell would give it: 128 + the signal's number for a signal."""
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code


def find_failure(text: str) -> RankFailure | None:
    """The rank whose failure brought the others down; None where the text holds no report.

    The agent names the rank that it saw first, which may be one that only lost the connection to a rank that died a
    moment before. So a crash comes first, except of a rank that was still alive when the agent began to close the
    others, then a mistake of the user's: rank 0's, if it found it too, for it has told it. A rank that says itself
    that it only lost another one comes last, and one that the agent ended is no reason at all.
    """
    failures = [RankFailure(int(m["rank"]), m["host"], int(m["code"]), int(m["pid"])) for m in _FAILURE.finditer(text)]
    if not failures:
        return None
    closed = {int(pid) for pid in _CLOSING.findall(text)}
    crashed = [f for f in failures if f.exit_code in _CRASHES and f.pid not in closed]
    mistaken = sorted((f for f in failures if f.exit_code == EXIT_USER_ERROR), key=lambda f: f.rank)
    seen_first = failures[-1]  # the root cause is the report's last entry
    if seen_first in crashed:
        return seen_first
    if crashed or mistaken:
        return (crashed or mistaken)[0]
    own = [f for f in failures if f.exit_code != EXIT_CONNECTION_LOST and not (f.exit_code < 0 and f.pid in closed)]
    return seen_first if seen_first in own or not own else own[0]


def closing_pid(line: str) -> int | None:
    """The process that the agent asks to end, as another one has failed; None where the line says no such thing."""
    match = _CLOSING.search(line)
    return int(match[1]) if match else None


def port_is_taken(text: str) -> bool:
    """Whether the ranks could not meet because another program listens at the port that they were given."""
    return _PORT_TAKEN.search(text) is not None


def describe(failure: RankFailure, log: Path, last_lines: Sequence[str]) -> str:
    """One message: which rank, where, how it ended, and the end of its log."""
    if failure.exit_code < 0:
        ended = f"was {killed_by(-failure.exit_code)}"
    else:
        ended = f"ended with exit code {failure.exit_code}"
    text = f"rank {failure.rank} on {failure.host} {ended}; its log is {log}"
    if not last_lines:
        return text
    return "\n".join([f"{text}, which ends with:", *(f"  {line}" for line in last_lines)])


def killed_by(number: int) -> str:
    """What a signal did to a process, with the signal's name."""
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"


class StderrFilter:
    """Tells the ranks' own lines on standard error from the agent's and Accelerate's talk about them.

    The agent's log lines are known by their form. Accelerate's traceback and the report come last, when all ranks have
    ended; since a rank's traceback begins in the same way, its first lines are held back until they tell whose it is.
    """

    def __init__(self) -> None:
        self._held: list[str] = []
        self._agent_is_ending = False

    def feed(self, line: str) -> list[str]:
        """The lines to show now that this one has come."""
        if self._agent_is_ending or _AGENT_LOG.match(line):
            return []
        if line.startswith(_TRACEBACK):
            shown, self._held = self._held, [line]
            return shown
        if not self._held:
            return [line]
        if _AGENT_FRAME.match(line):
            self._agent_is_ending = True
            self._held = []
            return []
        self._held.append(line)
        return [] if "<frozen runpy>" in line else self.close()

    def close(self) -> list[str]:
        """The lines that are still held back."""
        held, self._held = self._held, []
        return held
