"""Beginning a stage of `model.unfreeze`: more parameters are trained from here on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainlib.data.batches.loader import BatchLoader
from trainlib.distributed.allreduce.shared_memory import enable_local_allreduce
from trainlib.distributed.process_group import wrap_model
from trainlib.models import set_train_mode
from trainlib.training.step.state import TrainState
from trainlib.training.step.train_step import warm_up

logger = logging.getLogger("trainlib")


def enter_stage(state: TrainState, step: int, batches: BatchLoader) -> None:
    """Make the state what it is at this step; do nothing within a stage. A collective where a stage begins.

    Everything that depends on which parameters are trained is built anew, exactly as in a run that is resumed here: so
    the bits are the same. The optimizer and the EMA hold all parameters from the start, and nothing of them is rebuilt.
    """
    stage = state.stages.of(step)
    if stage == state.stage:
        return
    before = sum(parameter.requires_grad for parameter in state.parameters)
    state.stage = stage
    state.classifier = state.stages.enter(state.classifier, stage)
    set_train_mode(state.classifier)
    state.model = _wrapped_again(state)
    state.reducer = state.reducer.rebuilt(state.model)
    warm_up(state, batches.dummy_input())
    if state.accelerator.is_main_process:
        now = sum(parameter.requires_grad for parameter in state.parameters)
        logger.info("from step %d on, %d instead of %d parameter tensors are trained", step + 1, now, before)


@contextmanager
def last_stage(state: TrainState) -> Iterator[None]:
    """Context manager: all that is ever trained requires gradients, for a trial of how much memory that takes."""
    stages = state.stages
    set_train_mode(stages.enter(state.classifier, len(stages.released)))
    try:
        yield
    finally:
        set_train_mode(stages.enter(state.classifier, state.stage))


def _wrapped_again(state: TrainState) -> nn.Module:
    """Return the model in a new wrapper for the other ranks, where there are any: it shares trained gradients only."""
    module = state.local_model
    if module._compiled_call_impl is not None:  # as compiled at a start: kernels are chosen for what is trained
        torch.compiler.reset()
        module.compile(dynamic=False)
    if not isinstance(state.model, DistributedDataParallel):
        return module
    if (forward := getattr(module, "_original_forward", None)) is not None:  # Accelerate wraps it for the precision
        module.forward = forward
    model = wrap_model(state.accelerator, module, add_up_gradients=True)
    enable_local_allreduce(model, state.accelerator.device, state.pace)
    return model
