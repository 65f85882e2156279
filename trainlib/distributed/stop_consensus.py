"""Agreeing to stop: a rank that was asked to stop tells all others, which then stop at the same step."""

from __future__ import annotations

from typing import Protocol

from trainlib.runs.stop_request import StopFlag

RANKS_AT_EVERY_STEP = 16


class Channel(Protocol):
    """What ranks tell each other on: each hands in a flag, and takes, later, whether anybody's was up."""

    def size(self) -> int: ...

    def send_flag(self, *, asked: bool) -> None: ...

    def any_flag(self) -> bool: ...


class StopConsensus:
    """Whether any rank was asked to stop, told to all ranks at the same step without making them wait.

    At a step boundary a rank hands in its own flag, which travels beside the steps that follow, and takes what was
    handed in before: everyone learns of a request at the same boundary. Up to 16 ranks do so at each boundary, and
    learn of it at most one step late; W ranks at every W / 16th, as gloo's all-reduce goes around a ring of all of
    them, which takes longer than a short step from about 20 ranks on.
    """

    def __init__(self, flag: StopFlag, channel: Channel | None):
        """channel: None = this process alone"""
        self._flag = flag
        self._channel = channel
        self._every = 1 if channel is None else max(1, channel.size() // RANKS_AT_EVERY_STEP)
        self._boundaries = 0
        self._is_under_way = False

    def agreed(self) -> bool:
        """Call once at every step boundary, on every rank."""
        if self._channel is None:
            return self._flag.requested()
        self._boundaries += 1
        if self._boundaries % self._every:
            return False
        is_agreed = self.drain()
        self._channel.send_flag(asked=self._flag.requested())
        self._is_under_way = True
        return is_agreed

    def drain(self) -> bool:
        """The answer under way, if there is one; leaves none."""
        if self._channel is None or not self._is_under_way:
            return False
        self._is_under_way = False
        return self._channel.any_flag()
