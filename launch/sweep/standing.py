"""How the trials of a search stand: their results so far, and what was decided on these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.sweep.file.grid import Sweep
from launch.sweep.search import journal
from launch.sweep.search.halving import Targets, decide_targets
from launch.sweep.search.settings import TPE, Search
from launch.sweep.search.trials import Trial, read_trial
from trainlib.runs import RUNS


@dataclass(frozen=True)
class Standing:
    """How all trials of a search stand: their names, their results, and what was decided on these."""

    names: tuple[str, ...]
    trials: tuple[Trial, ...]
    decided: Targets

    @property
    def open(self) -> Iterator[tuple[int, int]]:
        """Yield (rung, number) of each trial that is to train further."""
        for number, trial in enumerate(self.trials):
            rung = self.decided.targets[number]
            is_there = rung < len(trial.at_rungs) and trial.at_rungs[rung] is not None
            if not (is_there or trial.is_complete or trial.why_failed is not None):
                yield rung, number


def standing(sweep: Sweep, known: dict[str, Trial] | None = None) -> Standing:
    """Return how the trials of a sweep stand; `known` as for `standing_of`."""
    assert sweep.search is not None, "the caller has looked"
    return standing_of([element.name for element in sweep.elements], sweep.search, RUNS / sweep.name, known)


def standing_of(names: Sequence[str], search: Search, folder: Path, known: dict[str, Trial] | None = None) -> Standing:
    """Return how trials stand, from their rows and the journal.

    folder   of the sweep, with the journal
    known    trials that need not be read again, by name; those that are read are added
    """
    why = journal.failed(journal.read(folder))
    known = {} if known is None else known
    for name in names:
        if name not in known:
            known[name] = read_trial(RUNS / name, search, why.get(name))
    trials = tuple(known[name] for name in names)
    missing = (search.trials or 0) - len(trials) if search.sampler == TPE else 0  # to be sampled yet
    scores = [trial.scores(search) for trial in trials] + [[None] * len(search.rungs)] * missing
    return Standing(tuple(names), trials, decide_targets(scores, len(search.rungs), search.reduction_factor))
