"""How the trials of a search stand: their results so far, and what was decided on these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from launch.sweep.grid import Element, Sweep
from launch.sweep.search import journal
from launch.sweep.search.halving import Targets, decide
from launch.sweep.search.settings import TPE
from launch.sweep.search.trials import Trial, read_trial
from trainlib.runs import RUNS


@dataclass(frozen=True)
class Standing:
    """How all trials of a search stand: its elements, their results, and what was decided on these."""

    elements: tuple[Element, ...]
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
    """Return how the trials of a sweep stand, from their rows and the journal.

    known   trials that need not be read again, by name; those that are read are added
    """
    search = sweep.search
    assert search is not None, "the caller has looked"
    why = journal.failed(journal.read(RUNS / sweep.name))
    known = {} if known is None else known
    for element in sweep.elements:
        if element.name not in known:
            known[element.name] = read_trial(RUNS / element.name, search, why.get(element.name))
    trials = tuple(known[element.name] for element in sweep.elements)
    missing = (search.trials or 0) - len(trials) if search.sampler == TPE else 0  # to be sampled yet
    scores = [trial.scores(search) for trial in trials] + [[None] * len(search.rungs)] * missing
    return Standing(sweep.elements, trials, decide(scores, len(search.rungs), search.reduction_factor))
