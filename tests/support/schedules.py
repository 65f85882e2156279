"""Learning rates by step: those of torch's own schedulers, and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import SGD, Optimizer, lr_scheduler

from trainlib.config import SchedulerConfig
from trainlib.models.optimizers.schedule import Schedule

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
