"""The schedule after a resume, at any step, and of a run that is extended."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from schedules import (
    EPOCHS,
    PLATEAU,
    SCHEDULERS,
    STEPS_PER_EPOCH,
    TOTAL_STEPS,
    WARMUP,
    build,
    moves,
    new_optimizer,
    options,
    schedule_of,
    section,
    sections,
    torch_trace,
)
from torch.optim import Optimizer

from trainlib.models.optimizers.schedule import Schedule

pytestmark = pytest.mark.filterwarnings("error")  # torch warns of a scheduler that is stepped at the wrong time


RESUMED: list[Any] = [
    *[section(**values, interval=interval) for values in SCHEDULERS for interval in ("step", "epoch")],
    section(**PLATEAU, metric="val/loss"),
    sections(
        {**WARMUP, "interval": "step", "duration": "3st"},
        {"name": "OneCycleLR", "max_lr": 0.3, "interval": "step", "duration": "2ep"},
        {**PLATEAU, "metric": "val/loss", "patience": 0},
    ),
    None,
]


def name_of(config: Any) -> str:
    if isinstance(config, list):
        return "+".join(map(name_of, config))
    return f"{config.name}-{config.interval}" if config else "null"


@pytest.mark.parametrize("optimizer_first", [True, False], ids=["optimizer-first", "schedule-first"])
@pytest.mark.parametrize("config", RESUMED, ids=name_of)
def test_resume_anywhere_continues_the_same(config: Any, optimizer_first: bool) -> None:
    optimizer = new_optimizer()
    schedule = schedule_of(config, optimizer)
    expected, saved = [options(optimizer)], [saved_state(schedule, optimizer)]
    for _ in moves(schedule, optimizer):
        expected.append(options(optimizer))
        saved.append(saved_state(schedule, optimizer))

    for first, state in enumerate(saved):
        resumed_optimizer = new_optimizer()
        resumed = schedule_of(config, resumed_optimizer)
        loaded = torch.load(io.BytesIO(state), weights_only=True)
        if optimizer_first:
            resumed_optimizer.load_state_dict(loaded["optimizer"])
            resumed.load_state_dict(loaded["schedule"])
        else:
            resumed.load_state_dict(loaded["schedule"])
            resumed_optimizer.load_state_dict(loaded["optimizer"])
        trace = [options(resumed_optimizer)]
        trace += [options(resumed_optimizer) for _ in moves(resumed, resumed_optimizer, first)]
        assert trace == expected[first:]


def saved_state(schedule: Schedule, optimizer: Optimizer) -> bytes:
    buffer = io.BytesIO()
    torch.save({"schedule": schedule.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("warmup", [[], [{**WARMUP, "interval": "step", "duration": "3st"}]], ids=["alone", "second"])
@pytest.mark.parametrize(
    ("name", "args"),
    [("CosineAnnealingLR", {"eta_min": 0.001}), ("OneCycleLR", {"max_lr": 0.3})],
    ids=["cosine", "1cycle"],
)
def test_a_schedule_as_long_as_the_run_stays_at_its_end_when_the_run_is_extended(
    name: str, args: dict[str, Any], warmup: list[dict[str, Any]], interval: str
) -> None:
    config = sections(*warmup, {"name": name, "interval": interval, **args})
    optimizer = new_optimizer()
    schedule = schedule_of(config, optimizer)
    rates = [schedule.lr for _ in moves(schedule, optimizer)]
    assert rates[-1] == min(rates) < 0.0011

    longer_optimizer = new_optimizer()
    longer = Schedule(config, longer_optimizer, total_steps=3 * TOTAL_STEPS, steps_per_epoch=STEPS_PER_EPOCH)
    longer.load_state_dict(schedule.state_dict())
    expected = options(optimizer)
    assert [options(longer_optimizer) for _ in moves(longer, longer_optimizer)] == [expected] * (TOTAL_STEPS + EPOCHS)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_t_max_of_ones_own_is_half_a_period(interval: str) -> None:
    """Also one that happens to be the run's length: past it, the learning rate climbs again, as torch's does."""
    length = {"step": TOTAL_STEPS, "epoch": EPOCHS}[interval] // 2
    config = section(name="CosineAnnealingLR", T_max=length, interval=interval)
    optimizer = new_optimizer()
    schedule = Schedule(config, optimizer, total_steps=TOTAL_STEPS // 2, steps_per_epoch=STEPS_PER_EPOCH)
    steps = moves(schedule, optimizer)
    for _ in range((TOTAL_STEPS + EPOCHS) // 2):
        next(steps)
    longer_optimizer = new_optimizer()
    longer = schedule_of(config, longer_optimizer)
    longer.load_state_dict(schedule.state_dict())
    for _ in moves(longer, longer_optimizer, (TOTAL_STEPS + EPOCHS) // 2):
        pass
    assert longer.lr == torch_trace(build("CosineAnnealingLR", T_max=length), interval)[-1][0][0] > 0.09


def test_loading_a_state_leaves_it_as_it_was() -> None:
    optimizer = new_optimizer()
    schedule = schedule_of(section(name="ExponentialLR", gamma=0.5, interval="step"), optimizer)
    state = schedule.state_dict()
    for _ in moves(schedule, optimizer):
        pass
    schedule.load_state_dict(state)
    assert schedule.lr == 0.1
    for _ in moves(schedule, optimizer):
        pass
    schedule.load_state_dict(state)
    assert schedule.lr == 0.1
