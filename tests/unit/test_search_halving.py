"""Asynchronous successive halving: which trials go on, against the paper's loop, in any order, after any kill."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from launch.sweep.search.halving import FAILED, decide_targets

Scores = list[list[float | None]]


def by_the_paper(scores: Sequence[Sequence[float]], num_rungs: int, factor: int) -> list[int]:
    """Algorithm 2 of Li et al. with one worker: a promotion if there is any, the highest rung first, else a new trial.
    Who comes first there is who is first by number, and then who was promoted first."""
    rungs: list[list[int]] = [[] for _ in range(num_rungs)]
    promoted: list[list[int]] = [[] for _ in range(num_rungs)]
    targets = [0] * len(scores)

    def settle() -> bool:
        for rung in reversed(range(num_rungs)):
            best = sorted(rungs[rung], key=lambda trial: (scores[trial][rung], rungs[rung].index(trial)))
            for trial in best[: len(best) // factor]:
                if trial not in promoted[rung] and scores[trial][rung] < FAILED:
                    promoted[rung].append(trial)
                    targets[trial] = rung + 1
                    if rung + 1 < num_rungs:
                        rungs[rung + 1].append(trial)
                    return True
        return False

    for trial in range(len(scores)):
        rungs[0].append(trial)
        while settle():
            pass
    for rung in range(num_rungs):  # few come to a high rung: the best of them goes on all the same
        able = [trial for trial in rungs[rung] if scores[trial][rung] < FAILED]
        if able and not promoted[rung]:
            best_of_all = min(able, key=lambda trial: (scores[trial][rung], rungs[rung].index(trial)))
            promoted[rung].append(best_of_all)
            targets[best_of_all] = rung + 1
            if rung + 1 < num_rungs:
                rungs[rung + 1].append(best_of_all)
    return targets


def drawn(generator: random.Random, trials: int, rungs: int) -> list[list[float]]:
    """Scores with ties and failures; who has failed at a rung has failed at all later ones."""
    scores = []
    for _ in range(trials):
        fails_at = generator.choice([rungs, rungs, rungs, generator.randrange(rungs + 1)])
        scores.append([FAILED if r >= fails_at else float(generator.randrange(12)) for r in range(rungs)])
    return scores


@pytest.mark.parametrize("seed", range(40))
def test_as_the_paper_says(seed: int) -> None:
    generator = random.Random(seed)
    rungs, factor = generator.choice([1, 2, 3]), generator.choice([2, 3, 4])
    scores = drawn(generator, generator.choice([1, 3, 16, 40]), rungs)
    decided = decide_targets(scores, rungs, factor)
    assert list(decided.targets) == by_the_paper(scores, rungs, factor)
    assert all(decided.final)


@pytest.mark.parametrize("seed", range(40))
def test_what_runs_at_the_same_time_and_is_killed_changes_no_decision(seed: int) -> None:
    """Workers end in any order, and lose what they were doing; in the end the same trials have come as far, and
    nothing that was once decided is taken back."""
    generator = random.Random(seed)
    rungs, factor, workers = generator.choice([1, 2, 3]), generator.choice([2, 3]), generator.choice([1, 2, 5])
    scores = drawn(generator, 20, rungs)
    known: Scores = [[None] * rungs for _ in scores]
    ended: set[int] = set()
    running: set[int] = set()
    before = decide_targets(known, rungs, factor)
    while True:
        now = decide_targets(known, rungs, factor)
        assert all(a >= b for a, b in zip(now.targets, before.targets, strict=True))
        assert all(now.targets[t] == before.targets[t] for t in range(len(scores)) if before.final[t])
        before = now
        waiting = [
            trial
            for trial, target in enumerate(now.targets)
            if trial not in running
            and (trial not in ended if target == rungs else known[trial][target] is None)
            and FAILED not in known[trial]
        ]
        running |= set(generator.sample(waiting, min(len(waiting), workers - len(running))))
        if not running:
            break
        trial = generator.choice(sorted(running))
        running.remove(trial)
        if generator.random() < 0.3:
            continue  # killed: nothing was learned
        target = now.targets[trial]
        ended |= {trial} if target == rungs else set()
        for rung in range(target, rungs):
            if rung == target or scores[trial][target] == FAILED:
                known[trial][rung] = scores[trial][rung]
    assert list(now.targets) == by_the_paper(scores, rungs, factor)
    assert ended == {trial for trial, target in enumerate(now.targets) if target == rungs}


def test_a_result_counts_once_all_before_it_have_one() -> None:
    assert decide_targets([[3.0], [None], [1.0], [2.0]], 1, 2).targets == (0, 0, 0, 0)
    assert decide_targets([[3.0], [4.0], [1.0], [2.0]], 1, 2).targets == (1, 0, 1, 1)


@pytest.mark.parametrize(
    ("scores", "targets"),
    [
        ([[5.0], [5.0], [5.0]], (1, 0, 0)),  # of equals the first
        ([[FAILED], [FAILED], [FAILED]], (0, 0, 0)),
        ([[FAILED], [7.0]], (0, 1)),  # too few for one in three: the best goes on all the same
        ([[1.0], [None]], (0, 0)),  # but not before that is known
        ([], ()),
    ],
)
def test_ties_failures_and_few_trials(scores: Scores, targets: tuple[int, ...]) -> None:
    assert decide_targets(scores, 1, 3).targets == targets


def test_without_rungs_every_trial_goes_to_its_end() -> None:
    assert decide_targets([[], []], 0, 3) == decide_targets([[], []], 0, 2)
    assert decide_targets([[], []], 0, 3).targets == (0, 0)
    assert all(decide_targets([[], []], 0, 3).final)
