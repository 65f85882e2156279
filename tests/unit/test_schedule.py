"""The schedule: the learning rates of torch's own schedulers, in sequence, and the same ones after a resume."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer, lr_scheduler

from trainlib.config import SchedulerConfig, load_config
from trainlib.errors import UserError
from trainlib.models.optimizers.build import build_optimizer
from trainlib.models.optimizers.schedule import Schedule
from trainlib.training.build import build_classifier, build_plan

pytestmark = pytest.mark.filterwarnings("error")  # torch warns of a scheduler that is stepped at the wrong time

EPOCHS, STEPS_PER_EPOCH = 8, 3
TOTAL_STEPS = EPOCHS * STEPS_PER_EPOCH
VAL_LOSSES = [1.0, 0.9, 0.95, 0.96, 0.97, 0.5, 0.6, 0.7]

SCHEDULERS: list[dict[str, Any]] = [
    {"name": "StepLR", "step_size": 2, "gamma": 0.5},
    {"name": "MultiStepLR", "milestones": [2, 5], "gamma": 0.3},
    {"name": "ConstantLR", "factor": 0.25, "total_iters": 3},
    {"name": "LinearLR", "start_factor": 0.1, "total_iters": 4},
    {"name": "ExponentialLR", "gamma": 0.9},
    {"name": "PolynomialLR", "total_iters": 6, "power": 2.0},
    {"name": "CosineAnnealingLR", "T_max": 5, "eta_min": 0.001},
    {"name": "CosineAnnealingWarmRestarts", "T_0": 2, "T_mult": 2},
    {"name": "CyclicLR", "base_lr": 0.01, "max_lr": 0.2, "step_size_up": 3, "mode": "exp_range", "gamma": 0.99},
    {"name": "OneCycleLR", "max_lr": 0.3, "total_steps": TOTAL_STEPS},
]
PLATEAU: dict[str, Any] = {"name": "ReduceLROnPlateau", "factor": 0.5, "patience": 1, "mode": "min"}
WARMUP: dict[str, Any] = {"name": "LinearLR", "start_factor": 0.1, "total_iters": 3}

Trace = list[list[tuple[float, float]]]


def section(**values: Any) -> SchedulerConfig:
    return SchedulerConfig.model_validate(values)


def sections(*elements: dict[str, Any]) -> list[SchedulerConfig]:
    return [section(**element) for element in elements]


def new_optimizer() -> Optimizer:
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    return SGD(
        [{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.04, "momentum": 0.5}], lr=1.0, momentum=0.9
    )


def options(optimizer: Optimizer) -> list[tuple[float, float]]:
    return [(group["lr"], group["momentum"]) for group in optimizer.param_groups]


def torch_trace(build: Callable[[Optimizer], Any], interval: str, limit: int = 10**9) -> Trace:
    """The options before each step and after the last, with a torch scheduler stepped at most `limit` times."""
    optimizer = new_optimizer()
    scheduler = build(optimizer)
    trace = [options(optimizer)]
    for step in range(1, TOTAL_STEPS + 1):
        optimizer.step()
        if interval == "step" and step <= limit:
            scheduler.step()
        elif interval == "epoch" and step % STEPS_PER_EPOCH == 0:
            if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
                scheduler.step(VAL_LOSSES[step // STEPS_PER_EPOCH - 1])
            else:
                scheduler.step()
        trace.append(options(optimizer))
    return trace


def schedule_of(config: Any, optimizer: Optimizer) -> Schedule:
    return Schedule(config, optimizer, total_steps=TOTAL_STEPS, steps_per_epoch=STEPS_PER_EPOCH)


def moves(schedule: Schedule, optimizer: Optimizer, first: int = 0) -> Iterator[None]:
    """Train from move `first`: each step is one move, and so is each epoch's end."""
    for move in range(first, TOTAL_STEPS + EPOCHS):
        epoch, within = divmod(move, STEPS_PER_EPOCH + 1)
        if within < STEPS_PER_EPOCH:
            optimizer.step()
            schedule.after_step()
        else:
            schedule.after_epoch({"val/loss": VAL_LOSSES[epoch], "train/loss": 0.0})
        yield


def our_trace(config: Any) -> Trace:
    optimizer = new_optimizer()
    schedule = schedule_of(config, optimizer)
    trace = [options(optimizer)]
    for move, _ in enumerate(moves(schedule, optimizer)):
        if move % (STEPS_PER_EPOCH + 1) == STEPS_PER_EPOCH:
            trace.pop()  # the epoch's end belongs to its last step
        trace.append(options(optimizer))
    return trace


def build(name: str, **args: Any) -> Callable[[Optimizer], Any]:
    return lambda optimizer: getattr(lr_scheduler, name)(optimizer, **args)


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
    plan, _ = build_plan(config, 50_000)
    module = build_classifier(config, 10, torch.device("cpu")).module
    optimizer = build_optimizer(config.optimizer, module.named_parameters())
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
