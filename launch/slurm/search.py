"""A search on SLURM: each trial is an element of the array, which ends at a rung and goes on when it is promoted.

At a rung an element puts itself back into the queue: to run where it is promoted already, held where that is not
decided yet. Whoever ends later releases those that are promoted by its result, and cancels those that are out. What is
decided follows from the rows of all trials, which lie on the disk that the nodes share; nobody has to stay alive.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launch.slurm import queue
from launch.slurm.ending.requeue import Evidence, RequeueDecision
from launch.slurm.queue import QueueError
from launch.sweep.file.grid import Sweep
from launch.sweep.search import journal
from launch.sweep.search.settings import Search
from launch.sweep.standing import Standing, standing_of
from trainlib.errors import EXIT_OK, EXIT_STOPPED, EXIT_USER_ERROR
from trainlib.runs import RUNS
from trainlib.runs.files.json_records import read_json
from trainlib.runs.files.locks import acquire
from trainlib.runs.records.jobs import job_lines, open_jobs
from trainlib.runs.records.reasons import EndCode

SEARCH = "search.json"  # beside the elements of an array
_LOCK_SECONDS = 60.0  # for other elements that end at the same moment
_ENDING_SECONDS = 30.0  # that an element takes to end after it was put back into the queue


@dataclass(frozen=True)
class ArraySearch:
    """A search whose trials are elements of arrays.

    sweep   its name, whose folder holds the journal
    names   of all trials, in their order
    """

    sweep: str
    names: tuple[str, ...]
    search: Search

    @property
    def folder(self) -> Path:
        """Return the sweep's folder."""
        return RUNS / self.sweep

    def standing(self) -> Standing:
        """Return how all trials stand now."""
        return standing_of(self.names, self.search, self.folder)

    def until(self, name: str) -> str:
        """Return where a trial that starts now is to stop, like `3ep`; empty for its own end."""
        rung = self.standing().decided.targets[self.names.index(name)]
        return f"{self.search.rungs[rung]}ep" if rung < len(self.search.rungs) else ""


def write_search(path: Path, sweep: Sweep) -> None:
    """Write the search that the elements of an array belong to."""
    assert sweep.search is not None, "the caller has looked"
    names = [element.name for element in sweep.elements]
    path.write_text(json.dumps({"sweep": sweep.name, "names": names, "search": asdict(sweep.search)}))


def read_search(path: Path) -> ArraySearch | None:
    """Return the search in a file; None where there is no such file."""
    found = read_json(path, strict=True)
    if not found:
        return None
    settings = found["search"]
    return ArraySearch(found["sweep"], tuple(found["names"]), Search(**{**settings, "rungs": tuple(settings["rungs"])}))


def search_of(arguments: Sequence[str]) -> Path | None:
    """Return the file of the search that a job's arguments, `@runs/NAME/submission-1/elements`, belong to, if any."""
    files = [Path(word[1:]).with_name(SEARCH) for word in arguments if word.startswith("@")]
    return next((file for file in files if file.exists()), None)


@contextmanager
def one_at_a_time(found: ArraySearch) -> Iterator[None]:
    """Context manager: keep other elements of the search from deciding; where that takes too long, go on."""
    lock = None
    with suppress(OSError):
        lock = acquire(found.folder / "ending.lock", seconds=_LOCK_SECONDS)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def of_trial(
    found: ArraySearch, name: str, evidence: Evidence, decision: RequeueDecision
) -> tuple[RequeueDecision, bool]:
    """Return what happens to the element of a trial, and whether it is held in the queue; see to the other elements."""
    if decision.cause == "failure" and not decision.requeue and decision.exit_code != EXIT_USER_ERROR:
        journal.note(found.folder, journal.FAILED, trial=name, exit_code=decision.exit_code, why=decision.why)
    settle(found, name)
    return _at_rung(found, name, decision) if evidence.code is EndCode.RUNG else (decision, False)


def _at_rung(found: ArraySearch, name: str, decision: RequeueDecision) -> tuple[RequeueDecision, bool]:
    now = found.standing()
    number = found.names.index(name)
    rung, is_final = now.decided.targets[number], now.decided.final[number]
    if any(open_number == number for _, open_number in now.open):
        until = f"{found.search.rungs[rung]}ep" if rung < len(found.search.rungs) else "its end"
        return replace(decision, requeue=True, why=f"it goes on to {until}", exit_code=EXIT_STOPPED), False
    if is_final:
        return replace(decision, requeue=False, why="others were better at this rung", exit_code=EXIT_OK), False
    return replace(decision, requeue=False, why="it waits for the other trials at this rung"), True


def settle(found: ArraySearch, but: str) -> None:
    """Release the elements in the queue that are promoted, and cancel those that are out.

    but   the name of the trial that calls this, which sees to itself
    """
    now = found.standing()
    jobs = {name: open_jobs(job_lines(RUNS / name)) for name in found.names if name != but}
    with suppress(QueueError):
        states = queue.job_states([ids[-1] for ids in jobs.values() if ids])
        is_open = {now.names[number] for rung, number in now.open if rung > 0}
        for number, name in enumerate(now.names):
            state = states.get(jobs[name][-1]) if jobs.get(name) else None
            if state is None or not state.active:
                continue
            if name in is_open and (state.waiting or state.state == "COMPLETING"):
                _release(state.job_id)
            elif now.decided.final[number] and name not in is_open and state.held:
                queue.cancel(state.job_id)


def _release(job_id: str) -> None:
    """Let an element run that was held; one that is just being put back is waited for."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while time.monotonic() < deadline:
        state = queue.job_states([job_id]).get(job_id)
        if state is None or state.waiting:
            break
        time.sleep(1.0)
    with suppress(QueueError):  # it runs already
        queue.release(job_id)
