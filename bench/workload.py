"""What every arm of the benchmark trains: the same pictures, batches, network and initial weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from trainlib.build import build_classifier, build_plan, build_preprocess
from trainlib.config import Config, load_config
from trainlib.data import load_data
from trainlib.data.images import Dataset, ImageSet, ResidentImages
from trainlib.plan import Plan

LEARNING_RATE, MOMENTUM = 0.01, 0.9
MODELS = ("cnn", "one-layer")


@dataclass(frozen=True)
class Workload:
    """
    root     class folders, root/train/<class>/* and root/test/<class>/*; None for the drawings that need no files
    copy     where `prepare` keeps their pixels, for all processes alike
    model    "cnn", the tutorial's, or "one-layer", which leaves little but what a loop adds to each step
    steps    of a round
    rounds   that count; one more warms up
    threads  of torch
    gpu      train on it; else on the CPU, whatever there is
    """

    root: str | None
    copy: Path
    model: str
    steps: int
    rounds: int
    threads: int
    batch_size: int = 64
    gpu: bool = False

    @cached_property
    def config(self) -> Config:
        data = "name: synthetic" if self.root is None else f"name: image_folder, root: {self.root}"
        return load_config(
            [
                "cifar10_cnn",
                f"data={{{data}, val_fraction: 0, drop_last: true, augment: {{}}}}",
                f"optimizer={{name: SGD, lr: {LEARNING_RATE}, momentum: {MOMENTUM}}}",
                f"train={{steps: {self.total_steps}, batch_size: {self.batch_size}}}",
                "scheduler=null",
            ]
        )

    def prepare(self) -> None:
        """Decode or draw the images, once."""
        if not self.copy.exists():
            dataset = load_data(self.config.data)
            facts = {"class_names": dataset.class_names, "mean": dataset.mean, "std": dataset.std}
            for split, image_set in (("train", dataset.train), ("test", dataset.test)):
                ids_N = torch.arange(len(image_set.labels_N))
                facts |= {split: {"images": next(image_set.images.batches([ids_N])), "labels": image_set.labels_N}}
            torch.save(facts, self.copy)

    @cached_property
    def dataset(self) -> Dataset:
        facts = torch.load(self.copy, mmap=True)
        splits = (ImageSet(ResidentImages(facts[s]["images"]), facts[s]["labels"]) for s in ("train", "test"))
        return Dataset(*splits, facts["class_names"], facts["mean"], facts["std"])

    @cached_property
    def plan(self) -> Plan:
        return build_plan(self.config, len(self.dataset.train.labels_N))[0]

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.gpu else "cpu")

    @property
    def total_steps(self) -> int:
        return self.steps * (self.rounds + 1)

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        preprocess = build_preprocess(self.config, self.dataset)
        return preprocess.mean, preprocess.std

    def pixels(self) -> Tensor:
        """All training images, uint8 [N, 3, H, W]."""
        return next(self.dataset.train.images.batches([torch.arange(len(self.dataset.train.labels_N))]))

    def batches(self) -> Iterator[Tensor]:
        """The sample indices of every step, int64 [B]."""
        for step in range(0, self.total_steps, self.plan.steps_per_epoch):
            yield from self.plan.batches(self.plan.epoch_of(step))[: self.total_steps - step]

    def network(self, *, channels_last: bool) -> nn.Module:
        """With its initial weights, the same every time, on the device."""
        num_classes = len(self.dataset.class_names)
        if self.model == "one-layer":
            torch.manual_seed(0)
            return one_layer(num_classes).to(self.device)
        network = build_classifier(self.config, num_classes, torch.device("cpu")).module
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return network.to(self.device, memory_format=layout)


def one_layer(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))


def sgd(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
