"""Whether a run is started again by itself after a fault of the machine, as a pure function of its starts so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trainlib.runs.attempt.step_file import Steps

MOST_RESTARTS = 3  # unless --restarts says otherwise
_LONGEST_PAUSE = 30.0


@dataclass(frozen=True)
class RestartDecision:
    """What follows a start that a fault of the machine has ended.

    number    of the restart, counted since the run last came further; None where there is none
    pause     seconds before it
    why_not   why there is none
    """

    number: int | None = None
    pause: float = 0.0
    why_not: str = ""


def decide_restart(starts: Sequence[Steps | None], most: int) -> RestartDecision:
    """Return whether the run is started again.

    starts   how far each start has come that a fault of the machine has ended, oldest first: the rank that died, or
             None where it had not begun to train
    most     number of restarts, counted since the last step that was never finished before
    """
    if most == 0:
        return RestartDecision()
    if (step := _repeated_step(starts)) is not None:
        return RestartDecision(
            why_not=f"it ended like this twice after step {step}, before the next one was finished: it repeats, and is "
            "not chance"
        )
    number = _starts_without_progress(starts)
    if number > most:
        return RestartDecision(
            why_not=f"it was started again {most} time{'s' * (most > 1)} and finished no step that was not finished "
            "before; give more with --restarts"
        )
    return RestartDecision(number, pause=0.0 if number == 1 else min(2.0 ** (number - 2), _LONGEST_PAUSE))


def _repeated_step(starts: Sequence[Steps | None]) -> int | None:
    """Return the last step of the two newest starts that finished any, where it is the same, and one is the newest."""
    trained = [start for start in starts if start is not None and start.finished > start.begun_from]
    if len(trained) > 1 and trained[-1] is starts[-1] and trained[-1].finished == trained[-2].finished:
        return trained[-1].finished
    return None


def _starts_without_progress(starts: Sequence[Steps | None]) -> int:
    """Return the number of starts from the newest one that finished a step for the first time on, that one included.

    Where no start has, all count.
    """
    furthest, count = -1, 0
    for start in starts:
        if start is not None and start.finished > max(furthest, start.begun_from):
            furthest, count = start.finished, 0
        count += 1
    return count
