"""A run that becomes longer: what its learning rate is then is told, and refused where the schedule has ended."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import yaml
from schedules import STEPS_PER_EPOCH, moves, new_optimizer

from trainlib.config import Config, harmful, load_config
from trainlib.errors import RunDirectoryError, UserError
from trainlib.models.optimizers.longer import describe_early_end, lengthen
from trainlib.models.optimizers.schedule import Schedule

PLANNED, LONGER = 4, 8  # epochs


def configured(scheduler: Any, **train: int) -> Config:
    return load_config([{"name": "x", "scheduler": scheduler, "train": train or {"epochs": PLANNED}}])


def started(config: Config, total_steps: int) -> tuple[Schedule, Any]:
    optimizer = new_optimizer()
    return Schedule(config.scheduler, optimizer, total_steps=total_steps, steps_per_epoch=STEPS_PER_EPOCH), optimizer


def rates_of(schedule: Schedule, optimizer: Any, first: int, last: int) -> list[float]:
    """Train from one step to another; the learning rates after each step, and at each epoch's end."""
    first, last = (step + step // STEPS_PER_EPOCH for step in (first, last))
    return [schedule.lr for _ in itertools.islice(moves(schedule, optimizer, first), last - first)]


def resumed(earlier: Config, later: Config, trained: int = PLANNED * STEPS_PER_EPOCH) -> tuple[Schedule, Any]:
    """The schedule of the longer run, after a checkpoint of the earlier one."""
    before, optimizer = started(earlier, PLANNED * STEPS_PER_EPOCH)
    rates_of(before, optimizer, 0, trained)
    after, optimizer = started(later, LONGER * STEPS_PER_EPOCH)
    after.load_state_dict(before.state_dict())
    return after, optimizer


ENDED: list[Any] = [
    {"name": "OneCycleLR", "max_lr": 0.3, "total_steps": 12, "interval": "step"},
    {"name": "OneCycleLR", "max_lr": 0.3, "total_steps": 4},
    {"name": "OneCycleLR", "max_lr": 0.3, "epochs": 4, "steps_per_epoch": 3, "interval": "step"},
    {"name": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "total_iters": 4},
    {"name": "PolynomialLR", "total_iters": 3},
    {"name": "ExponentialLR", "gamma": 0.01},
    {"name": "ConstantLR", "factor": 1.0e-5, "total_iters": 100},
    [{"name": "LinearLR", "duration": "1ep"}, {"name": "PolynomialLR", "total_iters": 3}],
]
FOLLOWING: list[Any] = [
    {"name": "CosineAnnealingLR"},
    {"name": "CosineAnnealingLR", "interval": "step"},
    {"name": "CosineAnnealingLR", "eta_min": 0.01},
    {"name": "OneCycleLR", "max_lr": 0.3, "interval": "step"},
    {"name": "OneCycleLR", "max_lr": 0.3, "final_div_factor": 1.0},
    [{"name": "LinearLR", "duration": "1ep"}, {"name": "CosineAnnealingLR", "interval": "step"}],
]
GOING_ON: list[Any] = [
    (None, "learning rate 0.1 in the first, 0.1 in the last, at most 0.1 (no scheduler)"),
    ({"name": "StepLR", "step_size": 2, "gamma": 0.5}, "learning rate 0.025 in the first, 0.0125 in the last"),
    ({"name": "CosineAnnealingLR", "T_max": 16}, "at most 0.08536 (CosineAnnealingLR)"),
    ({"name": "CosineAnnealingLR", "T_max": 4}, "learning rate 0 in the first, 0.08536 in the last"),
    ({"name": "OneCycleLR", "max_lr": 0.3, "total_steps": 8}, "(OneCycleLR)"),
    ({"name": "ReduceLROnPlateau"}, "learning rate 0.1 in the first, 0.1 in the last"),
    ({"name": "CosineAnnealingWarmRestarts", "T_0": 4}, "learning rate 0.1 in the first"),
]


def say(earlier: Config, later: Config, trained: int = PLANNED * STEPS_PER_EPOCH) -> str | None:
    schedule, _ = resumed(earlier, later, trained)
    state = schedule.state_dict()
    try:
        return lengthen(schedule, earlier, later, STEPS_PER_EPOCH)
    finally:
        assert schedule.has_followed or schedule.state_dict() == state  # a look ahead changes nothing


@pytest.mark.parametrize("length", [{"epochs": LONGER}, {"steps": LONGER * STEPS_PER_EPOCH}], ids=["epochs", "steps"])
@pytest.mark.parametrize("trained", [5, PLANNED * STEPS_PER_EPOCH], ids=["interrupted", "finished"])
@pytest.mark.parametrize("scheduler", ENDED, ids=str)
def test_a_schedule_that_has_ended_is_refused_with_the_ways_out(
    scheduler: Any, trained: int, length: dict[str, int]
) -> None:
    earlier = configured(scheduler)
    with pytest.raises(RunDirectoryError, match=r"has ended at step 12, .*model.weights=run:x") as caught:
        say(earlier, configured(scheduler, **length), trained)
    [advice] = [part for part in str(caught.value).split("`") if part.startswith("--resume")]
    listed = yaml.safe_load(advice.partition("scheduler='")[2].removesuffix("'"))
    later = configured(listed, **length)
    assert harmful(earlier, later) == []
    told = say(earlier, later, trained)
    assert told is not None
    assert "learning rate 0.1 in the first" in told


@pytest.mark.parametrize(("scheduler", "words"), GOING_ON, ids=str)
def test_a_schedule_that_goes_on_is_told(scheduler: Any, words: str) -> None:
    told = say(configured(scheduler), configured(scheduler, epochs=LONGER))
    assert told is not None
    assert told.startswith("the run becomes longer, by 12 steps: ")
    assert words in told


@pytest.mark.parametrize("trained", [2, 5, PLANNED * STEPS_PER_EPOCH], ids=["early", "interrupted", "finished"])
@pytest.mark.parametrize("scheduler", FOLLOWING, ids=str)
def test_a_schedule_as_long_as_the_run_follows_it(scheduler: Any, trained: int) -> None:
    earlier, later = configured(scheduler), configured(scheduler, epochs=LONGER)
    total = LONGER * STEPS_PER_EPOCH
    expected = rates_of(*started(later, total), 0, total)
    schedule, optimizer = resumed(earlier, later, trained)

    told = lengthen(schedule, earlier, later, STEPS_PER_EPOCH)

    assert told is not None
    assert told.startswith("the run becomes longer, by 12 steps: ")
    if schedule.has_followed:
        assert "is spread over 24 steps from here on: the next step has learning rate" in told
    assert rates_of(schedule, optimizer, trained, total) == expected[-(total + LONGER - trained - trained // 3) :]
    assert not schedule.follow_length()


def test_a_schedule_that_has_not_come_to_its_open_part_follows_without_a_difference() -> None:
    scheduler = [{"name": "LinearLR", "duration": "1ep"}, {"name": "CosineAnnealingLR"}]
    schedule, _ = resumed(configured(scheduler), configured(scheduler, epochs=LONGER), trained=2)
    assert not schedule.follow_length()
    assert not schedule.has_followed


WASTED: list[Any] = [  # (scheduler, first of the steps at next to nothing)
    ({"name": "LinearLR", "start_factor": 1.0, "end_factor": 0.0, "total_iters": 2}, 7),
    ({"name": "PolynomialLR", "total_iters": 5, "interval": "step"}, 6),
    ({"name": "OneCycleLR", "max_lr": 0.3, "total_steps": 6, "interval": "step"}, 6),
    ({"name": "ConstantLR", "factor": 1.0e-5, "total_iters": 100}, 1),
    ({"name": "MultiStepLR", "milestones": [3], "gamma": 1.0e-5}, 10),
    ([{"name": "LinearLR", "duration": "1ep"}, {"name": "StepLR", "step_size": 1, "gamma": 1.0e-5}], 7),
]


@pytest.mark.parametrize(("scheduler", "first"), WASTED, ids=str)
def test_a_new_run_is_warned_of_a_schedule_that_ends_long_before_it(scheduler: Any, first: int) -> None:
    schedule, optimizer = started(configured(scheduler), PLANNED * STEPS_PER_EPOCH)
    expected = rates_of(*started(configured(scheduler), PLANNED * STEPS_PER_EPOCH), 0, PLANNED * STEPS_PER_EPOCH)
    told = describe_early_end(schedule, PLANNED * STEPS_PER_EPOCH)
    assert told is not None
    assert f"from step {first} on" in told
    assert f"the last {13 - first} of 12 steps" in told
    assert rates_of(schedule, optimizer, 0, PLANNED * STEPS_PER_EPOCH) == expected


@pytest.mark.parametrize("scheduler", [*FOLLOWING, *(scheduler for scheduler, _ in GOING_ON[:-2])], ids=str)
def test_a_schedule_that_fills_the_run_is_not_spoken_of(scheduler: Any) -> None:
    schedule, _ = started(configured(scheduler), PLANNED * STEPS_PER_EPOCH)
    assert describe_early_end(schedule, PLANNED * STEPS_PER_EPOCH) is None


def test_a_schedule_of_nothing_but_zeros_is_refused() -> None:
    scheduler = {"name": "ConstantLR", "factor": 0.0, "total_iters": 1000, "interval": "step"}
    schedule, _ = started(configured(scheduler), PLANNED * STEPS_PER_EPOCH)
    with pytest.raises(UserError, match=r"scheduler: the learning rate is 0 in all .* nothing would be learned"):
        describe_early_end(schedule, PLANNED * STEPS_PER_EPOCH)


def test_a_run_of_the_same_length_is_not_spoken_of() -> None:
    config = configured({"name": "CosineAnnealingLR"})
    assert say(config, config) is None


def test_an_added_scheduler_begins_where_the_run_was_planned_to_end() -> None:
    old = {"name": "CosineAnnealingLR"}
    earlier = configured(old)
    later = configured([{**old, "duration": "3ep"}, {"name": "StepLR", "step_size": 1}], epochs=LONGER)
    with pytest.raises(RunDirectoryError, match=r"scheduler.0.duration: got 3ep, .* after step 9, must end at step 12"):
        say(earlier, later)


@pytest.mark.parametrize(
    "scheduler",
    [
        [{"name": "StepLR", "step_size": 2, "duration": "4ep"}, {"name": "CosineAnnealingLR"}],
        [{"name": "StepLR", "step_size": 1}],
        {"name": "ExponentialLR", "gamma": 0.9},
        None,
    ],
)
def test_only_schedulers_behind_the_old_ones_are_harmless(scheduler: Any) -> None:
    earlier = configured({"name": "StepLR", "step_size": 1})
    assert [change.key for change in harmful(earlier, configured(scheduler))]
    assert not harmful(earlier, earlier)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_resumed_run_with_an_added_scheduler_has_the_rates_of_one_without_a_break(interval: str) -> None:
    old = {"name": "CosineAnnealingLR", "interval": interval}
    added = [{**old, "duration": f"{PLANNED}ep"}, {"name": "OneCycleLR", "max_lr": 0.2, "interval": interval}]
    earlier, later = configured(old), configured(added, epochs=LONGER)
    planned, total = PLANNED * STEPS_PER_EPOCH, LONGER * STEPS_PER_EPOCH
    expected = rates_of(*started(later, total), 0, total)

    rates = rates_of(*started(earlier, planned), 0, planned)
    after, optimizer = resumed(earlier, later)
    rates[-2:] = [after.lr, after.lr]  # the added one begins when the longer run does
    rates += rates_of(after, optimizer, planned, total)
    assert rates == expected
