"""What is found out on the machine before training: how many images fit, and whether compiling the model pays.

What is found decides bits, so it is part of the run's progress: a resumed run begins with it. It does not measure again
whether compiling pays; pieces may only become smaller, on a device with less memory.
"""

from __future__ import annotations

import logging
import time
from typing import Literal

import torch
from torch import Tensor

from trainlib.config import TrainConfig
from trainlib.data.batches.loader import DataModule
from trainlib.distributed.process_group import broadcast_object, gather_objects
from trainlib.errors import UserError
from trainlib.platform.accelerators import synchronize
from trainlib.training.metrics.progress import Progress
from trainlib.training.step.stages import last_stage
from trainlib.training.step.state import TrainState
from trainlib.training.step.train_step import trial
from trainlib.training.tuning import memory

logger = logging.getLogger("trainlib")

TRIALS = 5  # of a step, of which the fastest counts


def autotune(config: TrainConfig, state: TrainState, samples: DataModule, progress: Progress, total_steps: int) -> None:
    """Fit micro-batch size and compilation to the devices of all ranks, in `state` and `progress`. A collective."""
    dummy_input, size = samples.train.dummy_input(), samples.micro_batch_size
    if state.accelerator.device.type != "cpu":  # whose memory is not known to end, and whose kernels are deterministic
        most = min(size, progress.fitting or size)
        held = samples.train.rank_slice.num_images(config.batch_size)
        with last_stage(state):  # which takes the most memory: one limit for the whole run
            if state.reducer.fixes_micro_batches:
                memory.require_fit(state, dummy_input, most, held)
            else:
                progress.fitting = memory.find_limit(state, dummy_input, most, held) or progress.fitting
    size = min(size, progress.fitting or size)
    images_NCHW = dummy_input.expand(size, *dummy_input.shape[1:]).contiguous()
    choice = config.compile if progress.compiled is None else progress.compiled
    progress.compiled = compile_model(state, images_NCHW, choice, total_steps - progress.step)


def compile_model(state: TrainState, images_NCHW: Tensor, choice: bool | Literal["auto"], steps_left: int) -> bool:
    """Have torch.compile make the kernels of the model; whether it did. Nothing is trained by it. A collective.

    images_NCHW   as many as in a step
    choice        `auto`: where that saves more time in the steps that are left than it takes, by rank 0's clock
    Raises UserError, on every rank, for True where one of them cannot, as without a C++ compiler on a CPU.
    """
    if choice is False:
        return False
    model = state.local_model
    eager = _seconds(state, images_NCHW)
    began = time.perf_counter()
    problem = None
    try:
        model.compile(dynamic=False, options=_compiler_options(state.accelerator.device))
        trial(state, images_NCHW)
    except RuntimeError as error:  # all that torch's compiler raises
        problem = str(error).strip().split("\n")[0]
    if found := [theirs for theirs in gather_objects(problem) if theirs is not None]:
        if choice is True:
            raise UserError(f"train.compile: torch cannot compile this model here: {found[0]}")
        if state.accelerator.is_main_process:
            logger.warning("the model is not compiled: %s", found[0])
        return _without(model)
    needed, compiled = time.perf_counter() - began, _seconds(state, images_NCHW)
    pays = broadcast_object(choice is True or (eager - compiled) * steps_left > needed)
    if state.accelerator.is_main_process:
        logger.info(
            "compiling the model took %.1f s; forward and backward then take %.1f instead of %.1f ms: %s",
            needed,
            1000 * compiled,
            1000 * eager,
            "done" if pays else f"that does not pay in {steps_left} steps, so it is not used",
        )
    return True if pays else _without(model)


def _compiler_options(device: torch.device) -> dict[str, bool] | None:
    """Return the options of torch's compiler; where bits are to be reproducible, it must not choose kernels by timing.

    On CPUs it does not.
    """
    return {"deterministic": True} if device.type != "cpu" and torch.are_deterministic_algorithms_enabled() else None


def _without(model: torch.nn.Module) -> bool:
    model._compiled_call_impl = None  # there is no public way back from `compile`
    return False


def _seconds(state: TrainState, images_NCHW: Tensor) -> float:
    """Of a forward and a backward pass."""
    best = float("inf")
    for _ in range(TRIALS):
        began = time.perf_counter()
        trial(state, images_NCHW)
        synchronize(images_NCHW.device)
        best = min(best, time.perf_counter() - began)
    return best
