"""A bare loop in several processes, each with a part of the batch: DistributedDataParallel over gloo."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from bench.arms.feeds import tune
from bench.rounds import Rounds
from bench.workload import Workload, sgd
from trainlib.data import Preprocess


def train(workload: Workload, rounds: Rounds) -> None:
    """Train as the rank that the environment variables name, in batches that divide evenly."""
    tune()
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    network = workload.network(channels_last=True)
    wrapped = DistributedDataParallel(network, gradient_as_bucket_view=True)
    optimizer, criterion = sgd(network), nn.CrossEntropyLoss()
    pixels, labels_N = workload.pixels(), workload.dataset.train.labels_N
    preprocess = Preprocess(*workload.mean_and_std, workload.config.data.image_size)
    rounds.begin(network, optimizer)
    for batch in workload.batches():
        ids_N = batch.chunk(world_size)[rank]
        optimizer.zero_grad()
        loss = criterion(wrapped(preprocess(pixels.index_select(0, ids_N))), labels_N[ids_N])
        loss.backward()
        optimizer.step()
        rounds.step(loss / world_size)
