"""Which rank made a run of several ranks fail, judged from what torch's elastic agent reports.

`accelerate launch` exits with 1 whatever its ranks exited with; their own exit codes are in the report that
`trainlib.distributed.rendezvous.agent` writes. All of this is pure: text in, facts out.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainlib.errors import EXIT_CONNECTION_LOST, EXIT_USER_ERROR

_PORT_TAKEN = re.compile(r"EADDRINUSE|address already in use|another process is utilizing it", re.IGNORECASE)

# What NCCL's watchdog prints before it aborts a rank whose collective failed because another rank is gone. With other
# words, such as of a CUDA error, the rank is at fault itself.
_NCCL_LOST_PEER = re.compile(
    r"Watchdog caught collective operation timeout|ncclRemoteError|ncclSystemError|communicator was aborted"
    r"|remote process exited"
)

# A process that dies of these was not told to: no other rank's death is the reason.
_CRASHES = {-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL, -signal.SIGFPE}


@dataclass(frozen=True)
class RankFailure:
    """A rank that did not end well.

    exit_code   as subprocess gives it: negative for a signal
    """

    rank: int
    exit_code: int
    pid: int

    @property
    def shell_code(self) -> int:
        """The exit code as a shell would give it: 128 + the signal's number for a signal."""
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code


@dataclass
class AgentReport:
    """What the agent has reported so far.

    log        its own log messages and tracebacks
    closing    processes of the ranks that it asked to end, as another rank had failed
    failures   ranks that failed, first observed first
    waiting    whether it waits for other machines
    error      why it started no rank, for the user; empty if it did
    """

    log: list[str] = field(default_factory=list)
    closing: list[int] = field(default_factory=list)
    failures: list[RankFailure] = field(default_factory=list)
    waiting: bool = False
    error: str = ""

    def add_line(self, line: str) -> None:
        """Take in one line of the report. A line that was cut off, as by a SIGKILL, is left out."""
        try:
            message = json.loads(line)
        except json.JSONDecodeError:
            return
        if "log" in message:
            self.log.append(message["log"])
        if "closing" in message:
            self.closing.append(message["closing"])
        self.waiting = message.get("waiting", self.waiting)
        self.error = message.get("error", self.error)
        if "failures" in message:
            self.failures = [RankFailure(**failure) for failure in message["failures"]]


def find_failed_rank(
    failures: Sequence[RankFailure], closing: Collection[int], frozen: Collection[int] = ()
) -> RankFailure | None:
    """Return the failure that brought the other ranks down; None where no rank failed.

    failures   first observed first
    closing    processes that the agent asked to end
    frozen     processes that the launcher killed because they were frozen: the others could only wait for them

    The rank observed first may only have lost the connection to a rank that died a moment before. So a crash comes
    first, except of a rank that was still alive when the agent began to close the others; then a mistake of the
    user's: rank 0's, if it found it too, for it has told it. A rank that says itself that it only lost the connection
    comes last, after one that aborted, which NCCL's watchdog may have done for the same reason; and a rank that the
    agent ended is never the cause.
    """
    if not failures:
        return None
    stuck = [f for f in failures if f.pid in frozen]
    crashed = [f for f in failures if f.exit_code in _CRASHES and f.pid not in closing]
    mistaken = sorted((f for f in failures if f.exit_code == EXIT_USER_ERROR), key=lambda f: f.rank)
    own = [f for f in failures if f.exit_code != EXIT_CONNECTION_LOST and not (f.exit_code < 0 and f.pid in closing)]
    without_aborted = [f for f in own if f.exit_code != -signal.SIGABRT]
    return (crashed or mistaken or stuck or without_aborted or own or failures)[0]


def judge_aborted(failure: RankFailure, last_lines: Sequence[str]) -> RankFailure:
    """Return the failure; that of a rank that NCCL aborted because it lost another one ends with that exit code.

    last_lines   the end of the rank's log
    """
    if failure.exit_code == -signal.SIGABRT and any(map(_NCCL_LOST_PEER.search, last_lines)):
        return replace(failure, exit_code=EXIT_CONNECTION_LOST)
    return failure


def port_is_taken(agent_log: str) -> bool:
    """Return True if the ranks could not connect because another program listens at the port that they were given."""
    return _PORT_TAKEN.search(agent_log) is not None


def describe(
    failure: RankFailure, host: str, log: Path | None, last_lines: Sequence[str], known: str | None = None
) -> str:
    """Return one message: which rank failed, on which host, how it ended, and the end of its log.

    log     None where the rank failed before it had one
    known   how it ended, where that is known better than from its exit code
    """
    if known:
        ended = known
    elif failure.exit_code < 0:
        ended = f"was {killed_by(-failure.exit_code)}"
    else:
        ended = f"ended with exit code {failure.exit_code}"
    where = f"its log is {log}" if log else "before training began"
    text = f"rank {failure.rank} on {host} {ended}{'; ' if log else ', '}{where}"
    if not last_lines:
        return text
    ends = ", which ends with:" if log else ". It had printed:"
    return "\n".join([text + ends, *(f"  {line}" for line in last_lines)])


def killed_by(number: int) -> str:
    """Return `killed by` and the name of a signal."""
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:
        return f"killed by signal {number}"
