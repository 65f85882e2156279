"""Batches for an arm, in the order of the workload: (images float32 [B, 3, H, W], labels int64 [B])."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.workload import Workload
from trainlib.runs.machine.kept_memory import keep_freed_memory
from trainlib.training.build.data import build_data_module

Batch = tuple[Tensor, Tensor]


class Pictures(Dataset[Any]):
    """A data set like torchvision's CIFAR10: arrays in memory; each becomes a PIL image, then a tensor."""

    def __init__(self, workload: Workload, *, normalised: bool):
        from torchvision import transforms

        self.pixels = workload.pixels().permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = workload.dataset.train.labels_N.tolist()
        last = [transforms.Normalize(*workload.mean_and_std)] if normalised else []
        self.transform = transforms.Compose([transforms.ToTensor(), *last])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class Tensors:
    """The batches of trainlib's own loader."""

    def __init__(self, workload: Workload):
        self.workload = workload

    def __iter__(self) -> Iterator[Batch]:
        workload = self.workload
        samples = build_data_module(workload.config, workload.dataset, torch.empty(0), one_process(workload))
        for [piece] in samples.train.train_batches(list(workload.batches()), 0, samples.augmentation):
            yield piece.images_NCHW, piece.targets.labels_N


def batches(
    workload: Workload, feed: str, workers: int, *, pin_memory: bool = False, normalised: bool = True
) -> Iterable[Any]:
    """Return the batches.

    feed         "pictures" for a DataLoader over PIL images, "tensors" for trainlib's loader
    normalised   apply mean and std; "tensors" are always normalised
    """
    if feed == "tensors":
        return Tensors(workload)
    order = [ids_N.tolist() for ids_N in workload.batches()]
    pictures = Pictures(workload, normalised=normalised)
    return DataLoader(pictures, batch_sampler=order, num_workers=workers, pin_memory=pin_memory)


def tune() -> None:
    """Let the process keep freed memory, as trainlib's training does."""
    keep_freed_memory(os.environ)


def one_process(workload: Workload) -> Any:
    """Return the Accelerator of a single process on the workload's device."""
    from accelerate import Accelerator

    return Accelerator(cpu=not workload.gpu, mixed_precision=workload.precision, dynamo_backend="no")
