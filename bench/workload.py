"""The training task that every arm of the benchmark performs: same images, batches, network and initial weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainlib.config import Config, load_config
from trainlib.data import load_data
from trainlib.data.batches.plan import Plan
from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.data.datasets.images import InMemoryImages
from trainlib.training.build.data import build_plan, build_preprocess
from trainlib.training.build.model import build_classifier

LEARNING_RATE, MOMENTUM = 0.01, 0.9
MODELS = {
    "cnn": "{name: cifar10_cnn}",
    "one-layer": "{name: cifar10_cnn}",  # in whose place `one_layer` is trained
    "resnet18": "{name: resnet18}",
    "resnet50": "{name: resnet50}",
    "vgg16": "{name: vgg16, dropout: 0.0}",  # what is dropped would differ from arm to arm
    "vgg16-half": "{name: vgg16, width: 0.5, dropout: 0.0}",
    "vgg16-thin": "{name: vgg16, width: 0.03, dropout: 0.0}",
}


@dataclass(frozen=True)
class Workload:
    """A training task.

    root        class folders, root/train/<class>/* and root/test/<class>/*; None for the synthetic data set
    copy        file in which `prepare` keeps the pixels, for all processes
    model       a key of MODELS; "cnn" is the tutorial's, "one-layer" has so little work that the loop's own cost shows
    steps       steps of a round
    rounds      rounds that count; one more comes first, to warm up
    threads     torch's threads
    gpu         True to train on the GPU, else on the CPU
    precision   no, fp32, bf16 or fp16
    noise       train on this many images of noise, `image_size` on a side, instead of `root`
    cpu_time    take the time of the processor, of all threads of a process, instead of the wall's
    until       no round begins after this moment of time.monotonic, once two of them count
    """

    root: str | None
    copy: Path
    model: str
    steps: int
    rounds: int
    threads: int
    batch_size: int = 64
    gpu: bool = False
    precision: str = "no"
    image_size: int = 32
    noise: int | None = None
    cpu_time: bool = False
    until: float = math.inf

    @cached_property
    def config(self) -> Config:
        data = "name: synthetic" if self.root is None else f"name: image_folder, root: {self.root}"
        data = f"{data}, image_size: {self.image_size}, val_fraction: 0, drop_last: true, augment: {{}}"
        train = f"steps: {self.total_steps}, batch_size: {self.batch_size}, precision: '{self.precision}'"
        return load_config(
            [
                "cifar10_cnn",
                f"data={{{data}}}",
                f"model={MODELS[self.model]}",
                f"optimizer={{name: SGD, lr: {LEARNING_RATE}, momentum: {MOMENTUM}}}",
                f"train={{{train}}}",
                "scheduler=null",
                *(["checkpoint.every=1000ep"] if self.noise else []),  # its epochs are as short as rounds
            ]
        )

    def prepare(self) -> None:
        """Decode or generate the images, once, and write their pixels to `copy`."""
        if not self.copy.exists():
            dataset = _noise(self.noise, self.image_size) if self.noise else load_data(self.config.data)
            facts: dict[str, Any] = {"class_names": dataset.class_names, "mean": dataset.mean, "std": dataset.std}
            for split, image_set in (("train", dataset.train), ("test", dataset.test)):
                ids_N = torch.arange(len(image_set.labels_N))
                facts |= {split: {"images": next(image_set.images.batches([ids_N])), "labels": image_set.labels_N}}
            torch.save(facts, self.copy)

    @cached_property
    def dataset(self) -> Dataset:
        facts = torch.load(self.copy, mmap=True)
        train, test = (ImageSet(InMemoryImages(facts[s]["images"]), facts[s]["labels"]) for s in ("train", "test"))
        return Dataset(train, test, facts["class_names"], facts["mean"], facts["std"])

    @cached_property
    def plan(self) -> Plan:
        return build_plan(self.config, self.dataset.train.labels_N)[0]

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.gpu else "cpu")

    @property
    def total_steps(self) -> int:
        return self.steps * (self.rounds + 1) + 1  # the end of a run, which tests and writes, is in no round

    @property
    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        preprocess = build_preprocess(self.config, self.dataset)
        return preprocess.mean, preprocess.std

    def pixels(self) -> Tensor:
        """Return all training images, uint8 [N, 3, H, W]."""
        return next(self.dataset.train.images.batches([torch.arange(len(self.dataset.train.labels_N))]))

    def batches(self) -> Iterator[Tensor]:
        """Yield the sample indices of every step, int64 [B]."""
        for step in range(0, self.total_steps, self.plan.steps_per_epoch):
            yield from self.plan.batches(self.plan.epoch_of(step))[: self.total_steps - step]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context for the forward pass and the loss, for loops that have no mixed precision of their own."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def network(self, *, channels_last: bool) -> nn.Module:
        """Return the network on the device, with initial weights that are the same every time."""
        num_classes = len(self.dataset.class_names)
        if self.model == "one-layer":
            torch.manual_seed(0)
            return one_layer(num_classes).to(self.device)
        network = build_classifier(self.config, num_classes, torch.device("cpu")).module.to(self.device)
        return network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _noise(count: int, size: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    labels_N = torch.arange(count) % 10
    train, test = (ImageSet(InMemoryImages(images[:n]), labels_N[:n]) for n in (count, 10))
    return Dataset(train, test, tuple("0123456789"), (0.5, 0.5, 0.5), (0.29, 0.29, 0.29))


def one_layer(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))


def sgd(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
