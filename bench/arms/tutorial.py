"""The loop of PyTorch's CIFAR-10 tutorial, which adds up the loss of every step for its printout."""

from __future__ import annotations

from torch import nn

from bench.arms.feeds import batches, tune
from bench.rounds import Rounds
from bench.workload import Workload, sgd


def train(
    workload: Workload, rounds: Rounds, *, feed: str, workers: int = 0, tuned: bool = False, keep_memory: bool = False
) -> None:
    if keep_memory:
        tune()
    network = workload.network(channels_last=tuned)
    optimizer, criterion = sgd(network), nn.CrossEntropyLoss()
    loader = iter(batches(workload, feed, workers, pin_memory=tuned and workload.gpu))
    running_loss = 0.0
    rounds.begin(network, optimizer)
    for batch in loader:
        inputs, labels = (tensor.to(workload.device, non_blocking=tuned) for tensor in batch)
        optimizer.zero_grad()
        with workload.autocast():
            outputs = network(inputs)
            loss = criterion(outputs, labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        rounds.step(loss)
