"""The loop of timm's train.py, which the package does not hold, from the parts that it holds.

Pictures come from its loader, whose prefetcher normalises them on the device; the task computes the loss; meters, the
line in the log every 50 updates, and the scheduler's step are what its train_one_epoch has between two steps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import AverageMeter
from torch import nn
from torch.utils.data import Dataset

from bench.arms.feeds import batches, tune
from bench.rounds import Rounds
from bench.workload import LEARNING_RATE, MOMENTUM, Workload

LOG_EVERY = 50

logger = logging.getLogger("train")


def train(
    workload: Workload, rounds: Rounds, *, feed: str, workers: int = 0, tuned: bool = False, keep_memory: bool = False
) -> None:
    logging.basicConfig(level=logging.INFO)
    if keep_memory:
        tune()
    if workload.gpu:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    network = workload.network(channels_last=tuned)
    task = ClassificationTask(network, criterion=nn.CrossEntropyLoss(), device=workload.device)
    optimizer = create_optimizer_v2(network, opt="momentum", lr=LEARNING_RATE, momentum=MOMENTUM)  # its sgd is Nesterov
    scheduler, _ = create_scheduler_v2(optimizer, sched="step", decay_epochs=300)
    loader = batches(workload, feed, workers) if feed == "tensors" else _loader(workload, workers, tuned=tuned)

    update_time, data_time, losses = AverageMeter(), AverageMeter(), AverageMeter()
    task.get_trainable_module().train()
    rounds.begin(network, optimizer)
    update_began = data_began = time.time()
    optimizer.zero_grad()
    for index, (inputs, target) in enumerate(loader):
        if tuned:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        data_time.update(time.time() - data_began)
        loss = task(inputs, target)["loss"]
        loss.backward()
        optimizer.step()
        losses.update(loss.item(), len(inputs))
        optimizer.zero_grad()
        task.update_ema(step=index + 1)
        now = time.time()
        update_time.update(now - update_began)
        update_began = now
        if index % LOG_EVERY == 0:
            rate = len(inputs) / update_time.val
            logger.info(f"{index}: loss {losses.val:.3g} ({losses.avg:.3g}), {rate:.0f}/s, data {data_time.avg:.3f} s")
        scheduler.step_update(num_updates=index + 1, metric=losses.avg)
        rounds.step(loss)
        data_began = time.time()


class OrderedPictures(Dataset[Any]):
    """The pictures in the order of the workload, as timm's loader takes no order; it sets `transform`."""

    def __init__(self, workload: Workload):
        self.pixels = workload.pixels().permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = workload.dataset.train.labels_N.tolist()
        self.order = torch.cat(list(workload.batches())).tolist()
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> tuple[Any, int]:
        index = self.order[place]
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def _loader(workload: Workload, workers: int, *, tuned: bool) -> Iterable[Any]:
    """As for training without augmentation, whose transforms are those of evaluation without a margin; in order."""
    mean, std = workload.mean_and_std
    loader: Iterable[Any] = create_loader(
        OrderedPictures(workload),
        input_size=(3, workload.image_size, workload.image_size),
        batch_size=workload.batch_size,
        is_training=False,
        crop_pct=1.0,
        mean=mean,
        std=std,
        num_workers=workers,
        pin_memory=tuned and workload.gpu,
        device=workload.device,
    )
    return loader
