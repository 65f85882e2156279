"""Agreeing to stop: a rank that was asked to stop tells all others, and all stop at the same step."""

from __future__ import annotations

from trainlib.distributed.consensus.channel import Channel
from trainlib.runs.attempt.stop_request import StopFlag

RANKS_AT_EVERY_STEP = 16


class StopConsensus:
    """Tells all ranks at the same step whether any of them was asked to stop, without making them wait.

    At a step boundary a rank sends its own flag, which travels beside the steps that follow, and receives the flags
    that were sent at the boundary before: every rank learns of a request at the same boundary. Fewer than 32 ranks do
    so at each boundary, and learn of a request at most one step late; W ranks do so at every W // 16th, as gloo's
    all-reduce goes around a ring of all ranks, which takes longer than a short step from about 20 ranks on.
    """

    def __init__(self, flag: StopFlag, channel: Channel | None, at_step: int | None = None):
        """Keep where to ask.

        channel   to the other ranks; None for a process alone
        at_step   a step at which all ranks stop, whether asked to or not; the same on every rank
        """
        self._flag = flag
        self._channel = channel
        self._at_step = at_step
        self._every = 1 if channel is None else max(1, channel.size() // RANKS_AT_EVERY_STEP)
        self._boundaries = 0
        self._is_pending = False

    def has_reached_end(self, step: int) -> bool:
        """Return True if `step` steps are as many as this start was asked to do (`at_step`)."""
        return self._at_step is not None and step >= self._at_step

    def agreed(self, step: int) -> bool:
        """Return True if all ranks are to stop after this step. Call it once at every step boundary, on every rank."""
        if self.has_reached_end(step):
            return True
        if self._channel is None:
            return self._flag.requested()
        self._boundaries += 1
        if self._boundaries % self._every:
            return False
        is_agreed = self.drain()
        self._channel.send_flag(self._flag.requested())
        self._is_pending = True
        return is_agreed

    def drain(self) -> bool:
        """Receive the flags that are still on their way, and return True if any is set."""
        if self._channel is None or not self._is_pending:
            return False
        self._is_pending = False
        return self._channel.any_flag()
