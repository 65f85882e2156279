"""Count how often training steps wait for the GPU, and where: torch warns of each under `set_sync_debug_mode`."""

from __future__ import annotations

import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bench.workload import Workload
from trainlib.distributed import process_group
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.training.build.training import build_inputs, build_training
from trainlib.training.hooks import Hook
from trainlib.training.step.train_step import StepResult
from trainlib.training.trainer import Trainer

WAIT = "synchronizing CUDA operation"  # in what torch warns of
FRAMES = 4  # of each stack that are shown
Stacks = Counter[tuple[str, ...]]


def count_waits(workload: Workload, skip: int, set_mode: Callable[[str], None] | None = None) -> tuple[Stacks, int]:
    """Return the stacks of the waits, innermost frame first, and the number of steps in which they were counted.

    skip       steps at the beginning that do not count
    set_mode   function that turns torch's warnings on and off

    No counted step writes a row or a checkpoint, which have to wait.
    """
    set_mode = set_mode or torch.cuda.set_sync_debug_mode
    if not workload.gpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    stacks: Stacks = Counter()
    last = min(workload.plan.total_steps, workload.plan.steps_per_epoch) - 1  # the step behind it writes a row
    tracking = workload.config.tracking.model_copy(update={"log_every": 10 * workload.total_steps})
    config = workload.config.model_copy(update={"tracking": tracking})
    with process_group.joined(config.train) as accelerator, _recorded(stacks):
        training = build_training(build_inputs(config, workload.dataset, accelerator, None), None)
        Trainer(training, [WarningsHook(skip, last, set_mode)]).run(StopConsensus(StopFlag(), None))
    return stacks, last - skip


class WarningsHook(Hook):
    """Turns torch's warnings on after the first of two steps, and off after the last one."""

    def __init__(self, first: int, last: int, set_mode: Callable[[str], object]):
        self._modes = {first: "warn", last: "default"}
        self._set_mode = set_mode

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        """Set the mode for the steps that follow."""
        if mode := self._modes.get(trainer.progress.step):
            self._set_mode(mode)


@contextmanager
def _recorded(stacks: Stacks) -> Iterator[None]:
    """Context manager: count the stacks of torch's warnings; show all other warnings as usual."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show = warnings.showwarning

        def record(message: Warning | str, *args: Any, **kwargs: Any) -> None:
            if WAIT in str(message):
                frames = [frame for frame in traceback.extract_stack()[:-1] if "/warnings.py" not in frame.filename]
                places = (f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames[-FRAMES:]))
                stacks[tuple(places)] += 1
            else:
                show(message, *args, **kwargs)

        warnings.showwarning = record
        yield


def waits_text(stacks: Stacks, steps: int) -> str:
    """Return the counts as Markdown."""
    lines = [f"{sum(stacks.values())} waits in {steps} steps that write no row."]
    for stack, count in stacks.most_common():
        lines += ["", f"{count} times at", "", *(f"    {place}" for place in stack)]
    return "\n".join(lines)
