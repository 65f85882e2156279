"""Accelerate's example loop (examples/cv_example.py), with the scheduler that it prepares and steps."""

from __future__ import annotations

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from bench.arms.feeds import batches, one_process, tune
from bench.rounds import Rounds
from bench.workload import Workload, sgd


def train(workload: Workload, rounds: Rounds, *, feed: str, workers: int = 0, tuned: bool = False) -> None:
    if tuned:
        tune()
    accelerator = one_process(gpu=workload.gpu)
    network = workload.network(channels_last=tuned)
    optimizer = sgd(network)
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    network, optimizer, loader, scheduler = accelerator.prepare(
        network, optimizer, batches(workload, feed, workers), scheduler
    )
    criterion = nn.CrossEntropyLoss()
    network.train()
    rounds.begin(accelerator.unwrap_model(network), optimizer.optimizer)
    for inputs, labels in loader:
        outputs = network(inputs)
        loss = criterion(outputs, labels)
        accelerator.backward(loss)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        rounds.step(loss)
