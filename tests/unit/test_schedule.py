"""The schedule: the learning rates of torch's own schedulers, in sequence, and the same ones after a resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from schedules import (
    EPOCHS,
    PLATEAU,
    SCHEDULERS,
    TOTAL_STEPS,
    WARMUP,
    build,
    new_optimizer,
    options,
    our_trace,
    schedule_of,
    section,
    sections,
    torch_trace,
)
from torch.optim import Adam, AdamW, Optimizer, lr_scheduler

from trainlib.config import load_config
from trainlib.errors import UserError
from trainlib.models.optimizers.build import build_optimizer
from trainlib.models.optimizers.schedule import Schedule
from trainlib.training.build.data import build_plan
from trainlib.training.build.model import build_classifier

pytestmark = pytest.mark.filterwarnings("error")  # torch warns of a scheduler that is stepped at the wrong time


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("values", SCHEDULERS, ids=lambda values: values["name"])
def test_one_scheduler_is_torchs(values: dict[str, Any], interval: str) -> None:
    limit = TOTAL_STEPS - 1 if values["name"] == "OneCycleLR" else TOTAL_STEPS  # it has that many values, not one more
    expected = torch_trace(build(**values), interval, limit)
    assert our_trace(section(**values, interval=interval)) == expected
    assert len({tuple(row) for row in expected}) > 1


def test_plateau_reads_its_metric() -> None:
    expected = torch_trace(build(**PLATEAU), "epoch")
    assert our_trace(section(**PLATEAU, metric="val/loss")) == expected
    assert len({tuple(row) for row in expected}) == 3
    assert our_trace(section(**PLATEAU, metric="train/loss")) != expected


@pytest.mark.parametrize("config", [None, []], ids=["null", "empty list"])
def test_without_a_scheduler_nothing_changes(config: Any) -> None:
    assert our_trace(config) == [options(new_optimizer())] * (TOTAL_STEPS + 1)


@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize(
    "elements",
    [
        [WARMUP, {"name": "CosineAnnealingLR", "T_max": 5}],
        [WARMUP, {"name": "StepLR", "step_size": 2}],
        [WARMUP, {"name": "PolynomialLR", "total_iters": 4}, {"name": "ExponentialLR", "gamma": 0.9}],
        [{"name": "ConstantLR", "total_iters": 1}, {"name": "MultiStepLR", "milestones": [1, 2]}],
    ],
    ids=lambda elements: "+".join(element["name"] for element in elements),
)
def test_sequence_is_torchs_sequential(elements: list[dict[str, Any]], interval: str) -> None:
    def sequential(optimizer: Optimizer) -> Any:
        schedulers = [build(**element)(optimizer) for element in elements]
        return lr_scheduler.SequentialLR(optimizer, schedulers, milestones=[3, 5][: len(elements) - 1])

    unit = "st" if interval == "step" else "ep"
    durations = [f"3{unit}", f"2{unit}", f"1{unit}"]
    config = sections(
        *({**e, "duration": d, "interval": interval} for e, d in zip(elements, durations, strict=False)),
    )
    expected = torch_trace(sequential, interval)
    for ours, theirs in zip(our_trace(config), expected, strict=True):
        assert ours == [pytest.approx(pair, rel=1e-14) for pair in theirs]


def test_each_element_has_its_own_interval() -> None:
    """Four steps of warmup, one of them in the second epoch; then a halving after each epoch that ends."""
    config = sections(
        {"name": "LinearLR", "start_factor": 0.2, "total_iters": 4, "interval": "step", "duration": "4st"},
        {"name": "StepLR", "step_size": 1, "gamma": 0.5, "interval": "epoch"},
    )
    rates = [row[0][0] for row in our_trace(config)]
    expected = [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025]
    assert rates[: len(expected)] == pytest.approx(expected)


def test_each_element_begins_from_the_configured_options() -> None:
    """OneCycleLR overwrites the base learning rate and the momentum; the next one must not see it."""
    config = sections(
        {"name": "OneCycleLR", "max_lr": 5.0, "interval": "step", "duration": "6st"},
        {"name": "ExponentialLR", "gamma": 0.5, "interval": "epoch"},
    )
    trace = our_trace(config)
    assert trace[3] != options(new_optimizer())
    assert trace[6] == options(new_optimizer())


@pytest.mark.parametrize(
    ("interval", "length"),
    [("step", TOTAL_STEPS), ("epoch", EPOCHS)],
)
def test_lengths_default_to_the_run(interval: str, length: int) -> None:
    cosine = our_trace(section(name="CosineAnnealingLR", interval=interval))
    assert cosine == torch_trace(build("CosineAnnealingLR", T_max=length), interval)
    assert cosine[-1][0][0] == pytest.approx(0.0, abs=1e-12)
    one_cycle = our_trace(section(name="OneCycleLR", max_lr=0.3, interval=interval))
    assert one_cycle == our_trace(section(name="OneCycleLR", max_lr=0.3, total_steps=length, interval=interval))


def test_lengths_in_a_sequence_default_to_what_is_left() -> None:
    warmup = {**WARMUP, "interval": "step", "duration": "3st"}
    cosine = {"name": "CosineAnnealingLR", "interval": "step"}
    assert our_trace(sections(warmup, cosine)) == our_trace(sections(warmup, {**cosine, "T_max": TOTAL_STEPS - 3}))
    restarted = our_trace(sections({**cosine, "duration": "2ep"}, cosine))
    assert restarted[:6] == torch_trace(build("CosineAnnealingLR", T_max=6), "step")[:6]


@pytest.mark.parametrize("optimizer_class", [Adam, AdamW])
def test_momentum_of_adam_is_cycled(optimizer_class: type[Optimizer]) -> None:
    def adam() -> Optimizer:
        return optimizer_class([torch.nn.Parameter(torch.zeros(1))], lr=0.1)  # type: ignore[call-arg]

    ours, theirs = adam(), adam()
    schedule = schedule_of(section(name="OneCycleLR", max_lr=0.3, interval="step"), ours)
    scheduler = lr_scheduler.OneCycleLR(theirs, max_lr=0.3, total_steps=TOTAL_STEPS)
    for _ in range(TOTAL_STEPS - 1):
        assert ours.param_groups[0]["betas"] == theirs.param_groups[0]["betas"]
        for optimizer in (ours, theirs):
            optimizer.step()
        schedule.after_step()
        scheduler.step()
    assert schedule.lr == theirs.param_groups[0]["lr"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (section(**{**PLATEAU, "factor": 2.0}, metric="val/loss"), "ReduceLROnPlateau: Factor should be < 1.0"),
        (section(name="StepLR", step_size=0), "scheduler StepLR: a period, or a part of it, is 0 long"),
        (
            sections({**WARMUP, "duration": "1ep"}, {"name": "OneCycleLR", "max_lr": 0.3, "pct_start": 2.0}),
            "scheduler OneCycleLR: Expected float between 0 and 1 pct_start, but got 2.0",
        ),
    ],
    ids=["factor", "step_size 0", "second of a list"],
)
def test_refused_values_are_told_before_training(config: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule_of(config, new_optimizer())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (sections(WARMUP, WARMUP), "every scheduler of a list but the last has a duration"),
        (section(**PLATEAU), "resolved with the configuration"),
    ],
    ids=["no duration", "no metric"],
)
def test_what_the_configurations_rules_refuse_does_not_come_here(config: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        schedule_of(config, new_optimizer())


def test_cycled_momentum_needs_an_optimizer_with_momentum() -> None:
    optimizer = torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(UserError, match="scheduler CyclicLR: optimizer must support momentum"):
        schedule_of(section(name="CyclicLR", base_lr=0.1, max_lr=0.2), optimizer)


TRIANGLE = (
    "scheduler=[{name: LinearLR, start_factor: 0.2, end_factor: 1.0, total_iters: 46, interval: step, duration: 46st}, "
    "{name: LinearLR, start_factor: 1.0, end_factor: 0.07, total_iters: 154, interval: step}]"
)


@pytest.mark.parametrize("overrides", [[], [TRIANGLE]], ids=["as shipped", "triangle"])
def test_rates_by_steps_for_groups_with_rates_of_their_own(overrides: list[str]) -> None:
    """Of configs/cifar10_fast.yaml: in every step, each group has its own rate times the same factor."""
    config = load_config(["cifar10_fast", *overrides])
    plan, _ = build_plan(config, torch.arange(50_000) % 10)
    module = build_classifier(config, 10, torch.device("cpu")).module
    optimizer = build_optimizer(config.optimizer, module)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [*(group.args["lr"] for group in config.optimizer.param_groups), config.optimizer.args["lr"]]
    total, peak = 200, 46
    assert plan.total_steps == total
    schedule = Schedule(config.scheduler, optimizer, total_steps=total, steps_per_epoch=plan.steps_per_epoch)
    for step in range(total):
        rising, falling = step / peak, (step - peak) / (total - peak)
        factor = 0.2 + 0.8 * rising if step < peak else 1 - (1 - 0.07) * falling
        if not overrides:
            factor = 1 - step / total
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([factor * rate for rate in rates], rel=1e-9), step
        optimizer.step()
        schedule.after_step()
        if plan.ends_epoch(step):
            schedule.after_epoch({"train/loss": 0.0})
    last = 0.07 if overrides else 0.0
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([last * rate for rate in rates], rel=1e-9)
