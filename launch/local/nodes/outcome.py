"""What the run directory says of how its newest attempt ended."""

from __future__ import annotations

from pathlib import Path

from trainlib.runs.attempt.record import last_event, read_attempts
from trainlib.runs.files.json_records import read_json
from trainlib.runs.records.reasons import EndCode, code_of_end


def is_complete(directory: Path) -> bool:
    """Return True if the run is complete."""
    end = last_event(read_attempts(directory), "end")
    is_done = end is not None and code_of_end(end) is EndCode.COMPLETED
    return is_done and read_json(directory / "summary.json").get("status") == "completed"


def was_unasked(directory: Path) -> bool:
    """Return True if the ranks stopped only because launcher, agent or another rank died: nobody asked them to."""
    end = last_event(read_attempts(directory), "end") or {}
    code = code_of_end(end)
    of_agent = code is EndCode.SIGNAL and end.get("reason") in ("SIGHUP", "SIGTERM")
    return of_agent or code in (EndCode.LAUNCHER_DIED, EndCode.OTHER_RANK)
