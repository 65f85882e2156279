"""A training whose losses become what a test says, on one rank at some steps."""

from __future__ import annotations

import ranks
import torch

TRAINING = [
    "quickstart",
    "name=run",
    "data={name: synthetic, limit: 60, val_fraction: 0.002, augment: {flip: true}}",
    "model={name: cifar10_cnn}",
    "optimizer={name: AdamW, lr: 1e-3}",
    "scheduler={name: ExponentialLR, gamma: 0.9, interval: step}",
    "train={epochs: 3, batch_size: 20}",
    "checkpoint={every: 2st}",
    "tracking={log_every: 1, tensorboard: false}",
]


def train_with_faults(arguments: list[str], faults: dict[int, tuple[int, float]]) -> int:
    """In each rank: train; `faults` says at which step which rank's loss becomes what."""
    import os

    from trainlib.train import main
    from trainlib.training.step.state import TrainState
    from trainlib.training.step.train_step import StepResult, train_step
    from trainlib.training.tuning import memory

    def faulty(state: TrainState, step: int, micro_batches: list[object], denominator: float) -> StepResult:
        rank, value = faults.get(step, (None, 0.0))
        if rank == int(os.environ.get("RANK", "0")):
            assert isinstance(state.objective.module, torch.nn.Module)
            hook = state.objective.module.register_forward_hook(lambda module, inputs, loss: loss * value)
            try:
                return train_step(state, step, micro_batches, denominator)  # type: ignore[arg-type]
            finally:
                hook.remove()
        return train_step(state, step, micro_batches, denominator)  # type: ignore[arg-type]

    ranks.replace(memory, "train_step", faulty)
    return main(arguments)
