"""Ranks that train and are asked to stop, at a step boundary or while they are inside a function."""

from __future__ import annotations

import os
import signal
from typing import Any

import ranks

from trainlib.errors import EXIT_STOPPED

STEPS = 12
VGG = [
    "vgg16_scratch32",
    "name=run",
    "data={name: synthetic, limit: 40, val_fraction: 0.002, augment: {flip: true, crop_padding: 4}}",
    "model={name: vgg16, width: 0.03, dropout: 0.5}",
    "optimizer={name: AdamW, lr: 1e-3}",
    "scheduler=[{name: LinearLR, interval: step, total_iters: 3, duration: 3st},"
    " {name: CosineAnnealingLR, interval: step}]",
    "train={epochs: 3, batch_size: 12, clip_grad_norm: 1.0}",  # batches of 12, 12, 12 and 4
    "checkpoint={every: 5st, keep: 2}",
    "tracking={log_every: 1, tensorboard: false}",
]


def train_until(arguments: list[str], boundary: int) -> int:
    """In each rank: train, with the last rank alone asked to stop at this attempt's `boundary`-th step boundary."""
    import os

    from trainlib.config import load_config
    from trainlib.distributed.consensus.stop_consensus import StopConsensus
    from trainlib.runs.attempt.stop_request import StopFlag
    from trainlib.runs.records.reasons import EndCode, EndReason
    from trainlib.train import train

    rank = int(os.environ.get("RANK", "0"))
    is_last = rank == int(os.environ.get("WORLD_SIZE", "1")) - 1
    boundaries = 0
    reached = StopConsensus.agreed

    def counting(self: StopConsensus, step: int) -> bool:
        nonlocal boundaries
        boundaries += 1
        if is_last and boundaries == boundary:
            flag.ask(EndReason(EndCode.SIGNAL, "test"))
        return reached(self, step)

    StopConsensus.agreed = counting  # type: ignore[method-assign]
    flag = StopFlag()
    return 0 if train(load_config(arguments), flag, rank=rank) else EXIT_STOPPED


def stop_within(arguments: list[str], module: str, name: str, rank: int, call: int) -> int:
    """In each rank: train; one gets SIGTERM at the `call`-th call of this function, while it is inside."""
    import importlib

    owner: Any = importlib.import_module(module)
    *classes, last = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original, calls = getattr(owner, last), 0

    def signalled(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and int(os.environ.get("RANK", "0")) == rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    setattr(owner, last, signalled)
    return ranks.main(arguments)
