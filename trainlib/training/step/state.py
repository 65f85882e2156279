"""The state that training steps work on: model, loss, optimizer, and the settings that decide how they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainlib.distributed.allreduce.reducer import Reducer
from trainlib.distributed.pace.pace import NoPace, Pace
from trainlib.models import Classifier
from trainlib.models.freezing import Stages
from trainlib.models.losses import Objective
from trainlib.models.optimizers.build import KERNEL_OPTIONS
from trainlib.models.own_parts.custom_parts import OwnMetric
from trainlib.models.weights.ema import ExponentialMovingAverage, NoAverage
from trainlib.models.weights.snapshot import Snapshot
from trainlib.training.step.audit import Audit
from trainlib.training.step.together import ShardsTogether
from trainlib.training.step.update import CheckedUpdate


@dataclass
class TrainState:
    """The model, loss, optimizer and precision settings that a training step uses.

    `classifier`, `model` and `reducer` are replaced when a stage of `model.unfreeze` begins (see `stages`).

    classifier      the bare module, whose parameters have their canonical names
    model           the classifier's module, or the part of it that is trained on cached features; wrapped for precision
                    and for the other ranks
    reducer         how gradients are added up over ranks
    update          how the optimizer steps, unless the gradient is not finite
    ema             the exponential moving average of the weights, or a stand-in that does nothing
    parameters      those that the optimizer steps, at some time of the run: without a gradient it leaves them alone
    buffers         room for what the model's buffers were before a step
    step_key        what the random numbers of every step have in common (see `randomness.key`)
    stages          which parameters are frozen at which step
    stage           the number of the stage that the run is in
    test_time       the test-time augmentation of evaluations: none, flip or flip_translate
    audit           the second computation of some micro-batches (train.audit); None without it
    own_metrics     functions of the user's own, of a whole split's logits and labels, by name
    together        computes a rank's virtual shards together; None where each is computed alone
    pace            compares this rank's speed with that of others
    """

    accelerator: Accelerator
    classifier: Classifier
    model: nn.Module
    objective: Objective
    optimizer: AcceleratedOptimizer
    reducer: Reducer
    update: CheckedUpdate
    ema: ExponentialMovingAverage | NoAverage
    parameters: Sequence[nn.Parameter]
    buffers: Snapshot
    clip_grad_norm: float | None
    step_key: int
    stages: Stages
    stage: int
    test_time: str = "none"
    audit: Audit | None = None
    own_metrics: Mapping[str, OwnMetric] = field(default_factory=dict)
    together: ShardsTogether | None = None
    pace: Pace | NoPace = field(default_factory=NoPace)

    @property
    def local_model(self) -> nn.Module:
        """The model wrapped for precision alone; not by Accelerate's `unwrap_model`, which imports torch's compiler."""
        wrapped: nn.Module = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        return wrapped

    def with_whole_model(self) -> TrainState:
        """Return the same state with a model that takes images, where this one takes cached features of them."""
        module = self.classifier.module
        if self.local_model is module:
            return self
        whole = self.accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)
        return replace(self, model=whole)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the model's weights; call it inside `ema.swapped_in()`."""
        return {
            "optimizer": self.optimizer.optimizer.state_dict(),
            "scaler": self.update.state_dict(),
            **self.ema.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's state, but with the optimizer kernels that were chosen for this device."""
        optimizer = state["optimizer"]
        groups = [
            saved | {option: group[option] for option in KERNEL_OPTIONS if option in group}
            for saved, group in zip(optimizer["param_groups"], self.optimizer.optimizer.param_groups, strict=True)
        ]
        self.optimizer.optimizer.load_state_dict({**optimizer, "param_groups": groups})
        self.update.load_state_dict(state["scaler"])
        self.ema.load_state_dict(state)
