"""The loop of Accelerate's example (examples/cv_example.py): normalised on the device, a prepared scheduler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from bench.arms.feeds import batches, one_process, tune
from bench.rounds import Rounds
from bench.workload import Workload, sgd


def train(
    workload: Workload, rounds: Rounds, *, feed: str, workers: int = 0, tuned: bool = False, keep_memory: bool = False
) -> None:
    if keep_memory:
        tune()
    accelerator = one_process(workload)
    network = workload.network(channels_last=tuned)
    optimizer = sgd(network)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    loader = batches(workload, feed, workers, pin_memory=tuned and workload.gpu, normalised=False)
    network, optimizer, loader, scheduler = accelerator.prepare(network, optimizer, loader, scheduler)
    mean, std = (_column(values, workload) for values in workload.mean_and_std)
    criterion = nn.CrossEntropyLoss()
    network.train()
    rounds.begin(accelerator.unwrap_model(network), optimizer.optimizer)
    for batch in loader:
        inputs, labels = (tensor.to(accelerator.device) for tensor in batch)
        if feed == "pictures":
            inputs = (inputs - mean) / std
        outputs = network(inputs)
        loss = criterion(outputs, labels)
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        rounds.step(loss)


def _column(values: Any, workload: Workload) -> Tensor:
    return torch.tensor(values, device=workload.device)[None, :, None, None]
