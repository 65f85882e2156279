"""Upper limits of speed: a bare loop over tensors with all of our optimisations, and the same on one repeated batch."""

from __future__ import annotations

from torch import Tensor, nn

from bench.arms.feeds import tune
from bench.rounds import Rounds
from bench.workload import Workload, sgd
from trainlib.data import Preprocess


def bare(workload: Workload, rounds: Rounds, *, repeat: bool = False) -> None:
    """Train with a bare loop.

    repeat   True to use the first batch, prepared in advance, in every step: the cost of computing alone
    """
    tune()
    network = workload.network(channels_last=True)
    optimizer, criterion = sgd(network), nn.CrossEntropyLoss()
    pixels, labels_N = workload.pixels().to(workload.device), workload.dataset.train.labels_N.to(workload.device)
    preprocess = Preprocess(*workload.mean_and_std, workload.config.data.image_size)

    def prepare(ids_N: Tensor) -> Tensor:
        return preprocess(pixels.index_select(0, ids_N))  # indexing takes 0.4 ms more

    batches = [ids_N.to(workload.device) for ids_N in workload.batches()]
    prepared = prepare(batches[0]), labels_N[batches[0]]
    rounds.begin(network, optimizer)
    for ids_N in batches:
        batch = prepared if repeat else (prepare(ids_N), labels_N[ids_N])
        optimizer.zero_grad()
        with workload.autocast():
            loss = criterion(network(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        rounds.step(loss)
