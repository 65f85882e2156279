"""What a run trains with: the model, its objective and its optimizer, as each step finds them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from trainlib.distributed.allreduce.elastic import ElasticReducer
from trainlib.models import Classifier
from trainlib.models.ema import ExponentialMovingAverage
from trainlib.models.losses import Objective
from trainlib.models.optimizers.build import KERNEL_OPTIONS

MIN_LOSS_SCALE = 1.0  # below it, a gradient that still overflows fp16 is no matter of scale


@dataclass(frozen=True)
class TrainState:
    """What turns a batch into an update.

    model            the classifier's module or, with a cache of features, the part of it that is trained; wrapped for
                     precision and for the other ranks
    parameters       those that the optimizer steps
    buffers          of the model; buffers_before: room for what they were before a step
    step_key         what the random numbers of every step have in common (see `randomness.key`)
    skips_unseen     a step whose gradient is not finite is skipped by the optimizer's kernels, and so are all after it;
                     the host learns of it later. What BatchNorm saw of them is not undone: the run ends there
    """

    accelerator: Accelerator
    classifier: Classifier  # the bare module: canonical names
    model: nn.Module
    objective: Objective
    optimizer: AcceleratedOptimizer
    parameters: Sequence[nn.Parameter]
    buffers: list[Tensor]
    buffers_before: list[Tensor]
    clip_grad_norm: float | None
    step_key: int
    skips_unseen: bool = False
    elastic: ElasticReducer | None = None  # None = DistributedDataParallel adds up the gradients
    ema: ExponentialMovingAverage | None = None
    test_time: str = "none"  # which views of an image an evaluation averages

    @property
    def num_shards(self) -> int:
        """Number of shards that a global batch is split into (see `RankSlice`)."""
        return self.accelerator.num_processes if self.elastic is None else self.elastic.num_shards

    @property
    def local_model(self) -> nn.Module:
        """The model wrapped for precision alone; not by Accelerate's `unwrap_model`, which imports torch's compiler."""
        wrapped: nn.Module = self.model.module if isinstance(self.model, DistributedDataParallel) else self.model
        return wrapped

    @property
    def stepping(self) -> Optimizer:
        """What is stepped: torch's optimizer, or Accelerate's around it where there is a loss scaler.

        Accelerate's looks through the whole search path for an optional package at each step: 0.3 ms.
        """
        stepping: Optimizer = self.optimizer.optimizer if self.accelerator.scaler is None else self.optimizer
        return stepping

    def with_whole_model(self) -> TrainState:
        """The same engine for images, where this one is for their features."""
        module = self.classifier.module
        if self.local_model is module:
            return self
        whole = self.accelerator.prepare_model(module, device_placement=False, evaluation_mode=True)
        return replace(self, model=whole)

    def scaler_state(self) -> dict[str, Any] | None:
        """The fp16 loss scaler's state; None at other precisions."""
        scaler = self.accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def overflow_is_expected(self) -> bool:
        """Whether a gradient that is not finite is the fp16 loss scaler feeling its way, and not a fault."""
        scaler = self.accelerator.scaler
        return scaler is not None and scaler.get_scale() >= MIN_LOSS_SCALE

    def ema_weights(self) -> AbstractContextManager[None]:
        """Inside, the weights are their average, where there is one: for evaluation, and for what is kept."""
        return nullcontext() if self.ema is None else self.ema.swapped_in()

    def load_state(self, optimizer: dict[str, Any], scaler: dict[str, Any] | None) -> None:
        """Continue with these states; but with the kernels that were chosen for this device."""
        groups = [
            saved | {option: group[option] for option in KERNEL_OPTIONS if option in group}
            for saved, group in zip(optimizer["param_groups"], self.optimizer.optimizer.param_groups, strict=True)
        ]
        self.optimizer.optimizer.load_state_dict({**optimizer, "param_groups": groups})
        if scaler is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
