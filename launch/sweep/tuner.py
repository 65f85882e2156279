"""Trains the trials of a search on this machine: samples them, stops them at rungs, and continues the best.

Nothing is kept in memory that decides: what runs next follows from the rows of the trials and from the journal. So the
command may be killed at any moment, and given again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from launch.sweep.file.grid import Element, Sweep, with_samples
from launch.sweep.file.names import numbered
from launch.sweep.local import Pool, passing_signals_on, start, values_text
from launch.sweep.results import is_finished
from launch.sweep.search import journal
from launch.sweep.search.settings import TPE, Search
from launch.sweep.search.tpe import Told, require_optuna, sample
from launch.sweep.search.trials import Trial, read_trial
from launch.sweep.shares import Shares
from launch.sweep.standing import Standing, standing
from trainlib.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED, EXIT_USER_ERROR, UserError
from trainlib.runs import RUNS
from trainlib.runs.attempt.record import last_event
from trainlib.runs.attempt.status import read_run
from trainlib.runs.attempt.stop_request import write_stop_file
from trainlib.runs.files.locks import acquire
from trainlib.runs.machine.launch_variables import STOP_AT
from trainlib.runs.records.reasons import machine_fault

MOST_STARTS = 3  # of a trial that the machine ends before it has come further
_KILLED = 128  # exit codes above it tell of a signal


@dataclass(frozen=True)
class TrialTask:
    """A trial that is to train now, to the rung of this index, or to its end if there is none such."""

    element: Element
    rung: int


def search_here(
    sweep: Sweep, parallel: int, shares: Shares, prepare: Callable[[Sequence[Element]], int], *, fresh: bool = False
) -> int:
    """Train the trials of a search until nothing is left to be decided; return the exit code of the whole.

    parallel   the number of trials at a time
    shares     what each of them gets of the machine
    prepare    makes the run directories of elements, or says why not and returns an exit code
    fresh      begin the search again; the journal of an earlier one is kept aside
    Stop signals are passed on, as in `run_here`. A trial that fails counts as the worst, and does not end the search;
    the exit code is that of a failure where all have failed, 75 where `launch stop` has ended some, and 2 where some
    were refused, as without their data: these have not failed.
    """
    search, folder = sweep.search, RUNS / sweep.name
    assert search is not None, "the caller has looked"
    with _alone(folder):
        if search.sampler == TPE:
            require_optuna()
        if fresh:
            journal.set_aside(folder)
            sweep = with_samples(sweep)
        journal.require_same_search(folder, search.settings)
        if code := prepare([element for element in sweep.elements if fresh or _is_to_begin(sweep, element)]):
            return code
        tuner = Tuner(sweep, search, shares, prepare)
        with passing_signals_on(parallel) as pool:
            while True:
                while pool.has_room and not pool.asked and (job := tuner.next_job(pool.running)) is not None:
                    tuner.start(job, pool)
                if not pool.running:
                    break
                tuner.ended(*pool.wait(), pool)
    if pool.asked:
        return EXIT_INTERRUPTED if pool.asked_again else EXIT_STOPPED
    return tuner.exit_code


def _is_to_begin(sweep: Sweep, element: Element) -> bool:
    """Return True if a trial's run directory is to be made, or compared with the trial's configuration."""
    failed = journal.failed(journal.read(RUNS / sweep.name))
    return not (element.name in failed or is_finished(element) or _is_running(RUNS / element.name))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Context manager: raise UserError where another process decides in this folder already."""
    try:
        lock = acquire(folder / "lock", seconds=0)
    except BlockingIOError as error:
        raise UserError(
            f"{folder}: another `launch sweep` runs this search already; let it go on, or end it"
        ) from error
    with lock:
        yield


class Tuner:
    """Starts trials, and takes in how they ended.

    sweep     grows by the trials that are sampled
    prepare   see `search_here`
    """

    def __init__(self, sweep: Sweep, search: Search, shares: Shares, prepare: Callable[[Sequence[Element]], int]):
        self.sweep, self._search, self._shares, self._prepare = sweep, search, shares, prepare
        self._folder = RUNS / sweep.name
        self._known: dict[str, Trial] = {}
        self._jobs: dict[str, TrialTask] = {}
        self._held: set[str] = set()  # which a person has stopped, or which were refused
        self._refused = False
        self._starts: dict[str, list[int | None]] = {}  # the steps to which starts came that the machine ended
        self._codes: dict[str, int] = {}  # of failures

    @property
    def exit_code(self) -> int:
        """Return the exit code of a search in which nothing is left to be done."""
        if self._held:
            return EXIT_USER_ERROR if self._refused else EXIT_STOPPED
        if all(trial.why_failed is not None for trial in self._known.values()):
            return next(iter(self._codes.values()), 1)
        return EXIT_OK

    def next_job(self, running: set[str]) -> TrialTask | None:
        """Return what is to train next: who goes on to the highest rung, else the next trial; None if nothing may."""
        now = standing(self.sweep, self._known)
        candidates = [(rung, number) for rung, number in now.open if now.names[number] not in {*running, *self._held}]
        if candidates:
            rung, number = max(candidates, key=lambda found: (found[0], -found[1]))
            return TrialTask(self.sweep.elements[number], rung)
        if self._search.sampler == TPE and len(now.names) < (self._search.trials or 0):
            self._sample(now)
            return self.next_job(running)
        return None

    def start(self, job: TrialTask, pool: Pool) -> None:
        """Start a trial, or wait for it where a process trains it that an earlier start of this command has left."""
        element = job.element
        self._jobs[element.name] = job
        if _is_running(RUNS / element.name):
            self._adopt(element, pool)
            return
        rungs = self._search.rungs
        until = f"{rungs[job.rung]}ep" if job.rung < len(rungs) else None
        journal.note(self._folder, journal.START, trial=element.name, until=until or "end")
        _say(f"{element.name}: {values_text(element)}; trains to {until or 'its end'}")
        start(pool, element, self._shares, {STOP_AT: until or ""}, self._folder / "output")

    def ended(self, name: str, code: int | None, pool: Pool) -> None:
        """Take in how a trial ended; its exit code is None where it is not known."""
        self._shares.give_back(name)
        element = next(element for element in self.sweep.elements if element.name == name)
        if code == EXIT_USER_ERROR and _is_running(RUNS / name):  # a process trains it that was only starting before
            self._adopt(element, pool)
            return
        before = self._known.pop(name)
        trial = read_trial(RUNS / name, self._search, before.why_failed)
        journal.note(self._folder, journal.END, trial=name, exit_code=code, epochs=trial.epochs, metric=trial.last)
        if code in (EXIT_OK, None):
            if (code == EXIT_OK and trial.is_complete) or trial.epochs > before.epochs:
                _say(
                    f"{name}: {self._search.metric} {_text(trial)} {'at its end' if trial.is_complete else ''}".rstrip()
                )
        elif code == EXIT_STOPPED:
            self._stopped(name, trial, pool)
        elif code == EXIT_USER_ERROR:  # as of data that are not there: it says nothing of the trial's values
            self._held.add(name)
            self._refused = True
            _say(f"{name} was refused: mend what {self._output(name)} says, and give the command again to continue it")
        elif not pool.asked:
            self._failed(name, code)

    def _stopped(self, name: str, trial: Trial, pool: Pool) -> None:
        """Take in the end of a trial at its rung; what a person has stopped is left alone."""
        rung = self._jobs[name].rung
        if rung < len(trial.at_rungs) and trial.at_rungs[rung] is not None:
            _say(f"{name}: {self._search.metric} {_text(trial)} at {trial.epochs}ep")
        elif not pool.asked:
            self._held.add(name)
            _say(f"{name} was stopped; give the command again to continue it")

    def _failed(self, name: str, code: int) -> None:
        """Have a trial started again that the machine has ended; any other one counts as the worst from now on."""
        run = read_run(RUNS / name)
        starts = self._starts.setdefault(name, [])
        starts.append(run.step)
        may_go_well = len(starts) < MOST_STARTS or starts[-MOST_STARTS] != run.step
        if may_go_well and (machine_fault(code) is not None or code > _KILLED):
            return
        end = last_event(run.attempts, "end") or {}
        self._fail(name, code, str(end.get("reason") or f"exit code {code}"))

    def _fail(self, name: str, code: int, why: str) -> None:
        """Write down that a trial counts as the worst from now on."""
        journal.note(self._folder, journal.FAILED, trial=name, exit_code=code, why=why)
        self._codes[name] = code
        self._known.pop(name, None)
        brief = why.partition(". ")[0]
        _say(f"{name} failed and counts as the worst ({brief}): launch status {name}, {self._output(name)}")

    def _output(self, name: str) -> Path:
        return self._folder / "output" / f"{name}.txt"

    def _adopt(self, element: Element, pool: Pool) -> None:
        directory = RUNS / element.name
        _say(f"{element.name}: is trained by a process of an earlier start; waiting for it")
        pool.adopt(element.name, lambda: not _is_running(directory), lambda: write_stop_file(directory, "SIGTERM"))

    def _sample(self, now: Standing) -> None:
        """Sample a trial by TPE, write it down, and only then know of it."""
        number = len(now.names)
        told = [
            Told(element.values, self._results(trial), trial.final)
            for element, trial in zip(self.sweep.elements, now.trials, strict=True)
            if trial.why_failed is not None or trial.is_complete or any(v is not None for v in trial.at_rungs)
        ]
        values = sample(self._search.space, told, self._search.mode, self._search.seed, number)
        element = self.sweep.frame.element(numbered(self.sweep.name, number + 1)[-1], values)
        journal.note(self._folder, journal.SAMPLE, number=number, values=values)
        if code := self._prepare([element]):
            self._fail(element.name, code, "it cannot be built")
        self.sweep = replace(self.sweep, elements=(*self.sweep.elements, element))

    def _results(self, trial: Trial) -> dict[int, float]:
        if trial.why_failed is not None:
            return {}
        return {
            rung: value for rung, value in zip(self._search.rungs, trial.at_rungs, strict=True) if value is not None
        }


def _is_running(directory: Path) -> bool:
    return read_run(directory, whole=False).status == "running"


def _text(trial: Trial) -> str:
    return "unknown" if trial.last is None else f"{trial.last:.4f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
