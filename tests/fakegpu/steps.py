"""Launches, copies and waits of training steps on the stand-in, whose kernels do nothing here: ours and plain loops.

`python tests/fakegpu/launches.py` prints them as a table.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ranks
import torch
from accelerate import Accelerator
from gpu_ranks import stand_in
from parts import build_trainer, make_dataset, resolved
from torch import Tensor, nn
from trainings import BASE, with_graph

from trainlib.config import Config
from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.distributed import process_group
from trainlib.training.trainer import Trainer
from trainlib.training.tuning.memory import step_that_fits

WARM, STEPS, BATCH = 6, 8, 8
COUNTED = ("launch", "graph", "wait", "copy H2D", "copy D2H", "copy D2D", "memset")
Case = Mapping[str, Any]
Counts = dict[str, float]

DATA: dict[str, Any] = BASE["data"] | {"val_fraction": 0.0, "augment": {}}
FLIP_AND_CROP = {"flip": True, "crop_padding": 2}
TRAIN: dict[str, Any] = {"epochs": 1, "batch_size": BATCH}
# A learning rate that changes at each step, which is one copy more.
EACH_STEP: Case = {
    "data": DATA,
    "train": TRAIN,
    "scheduler": BASE["scheduler"] | {"total_iters": 1000},
    "tracking": {"log_every": 1000},
}
# Few, for the ceilings of the tests.
CASES: Mapping[str, Case] = {
    "cnn": {},
    "cnn, flip and crop": {"data": DATA | {"augment": FLIP_AND_CROP}},
    "cnn, clipping": {"train": TRAIN | {"clip_grad_norm": 1.0}},
    "cnn, EMA": {"train": TRAIN | {"average": {"decay": 0.9}}},
    "cnn, audit": {"train": TRAIN | {"audit": 1000}},
    "cnn, MuonSGD": {"optimizer": {"name": "MuonSGD", "lr": 0.02}},
    "resnet18, bf16, AdamW": {
        "model": {"name": "resnet18"},
        "optimizer": {"name": "AdamW", "lr": 0.001, "fused": True},
        "train": TRAIN | {"precision": "bf16"},
    },
}
# All, for the table. Random crops of photographs are cut by the CPU, so only their flip is asked of the device.
MODELS: Mapping[str, Case] = {
    "cifar10_cnn": {"data": DATA | {"augment": FLIP_AND_CROP}},
    "resnet18": {"data": DATA | {"augment": FLIP_AND_CROP}, "model": {"name": "resnet18"}},
    "cifar10_fast": {
        "data": DATA | {"augment": {"flip": "alternating", "crop_padding": 2, "fill": "reflect"}},
        "model": {"name": "cifar10_fast"},
    },
    "resnet50, photographs": {
        "data": DATA | {"image_size": 224, "augment": {"flip": True}},
        "model": {"name": "resnet50"},
    },
    "vgg16": {"data": DATA | {"image_size": 224, "augment": {"flip": True}}, "model": {"name": "vgg16"}},
    "vit_b_16": {"data": DATA | {"image_size": 224, "augment": {"flip": True}}, "model": {"name": "vit_b_16"}},
}
OPTIMIZERS: Mapping[str, Case] = {
    # Kernels that do nothing cannot tell that they are fused, as on a GPU.
    "SGD": {"name": "SGD", "lr": 0.05, "momentum": 0.9, "fused": True},
    "AdamW": {"name": "AdamW", "lr": 0.001, "fused": True},
    "MuonSGD": {"name": "MuonSGD", "lr": 0.02},
}
PRECISIONS = ("fp32", "bf16")


def table_cases() -> dict[str, Case]:
    """The cases of the table, by model, optimizer and precision."""
    return {
        f"{model} | {optimizer} | {precision}": {
            **changes,
            "optimizer": OPTIMIZERS[optimizer],
            "train": TRAIN | {"precision": precision},
        }
        for (model, changes), optimizer, precision in itertools.product(MODELS.items(), OPTIMIZERS, PRECISIONS)
    }


def count(output: str, names: Sequence[str], loops: Sequence[str]) -> None:
    """Write how often each of COUNTED happens in a step, by the name of the case and of the loop."""
    cases = {**CASES, **table_cases()}
    found = {name: {loop: _counted(cases[name], LOOPS[loop]) for loop in loops} for name in names}
    Path(output).write_text(json.dumps(found))


def _counted(changes: Case, loop: Loop) -> Counts | None:
    """Return the counts of a step of this loop, without those of the first steps; None where it has no such step."""
    config = resolved({**BASE, **EACH_STEP, **changes})
    size = int(config.data.image_size)  # type: ignore[arg-type]
    dataset = make_dataset(BATCH * (WARM + STEPS), size=size)
    if size > 32:  # too many to be kept on the device
        dataset = Dataset(_on_host(dataset.train), dataset.test, *list(vars(dataset).values())[2:])
    library = stand_in()
    with process_group.joined(config.train) as accelerator:
        steps = loop(config, dataset, accelerator)
        if steps is None:
            return None
        for _ in range(WARM):
            next(steps)
        library.fakecuda_reset()
        for _ in range(STEPS):
            next(steps)
        return {what: library.fakecuda_count(what.encode()) / STEPS for what in COUNTED}


Loop = Callable[[Config, Dataset, Accelerator], "Iterator[None] | None"]


def ours(config: Config, dataset: Dataset, accelerator: Accelerator) -> Iterator[None]:
    """The steps of our training."""
    return _steps_of(build_trainer(with_graph(config, False), dataset, accelerator, None))


def captured(config: Config, dataset: Dataset, accelerator: Accelerator) -> Iterator[None] | None:
    """The steps of our training, replayed as a CUDA graph; None where they cannot be."""
    trainer = build_trainer(with_graph(config, "auto"), dataset, accelerator, None)
    ranks.replace(torch, "equal", lambda *tensors: True)  # kernels that do nothing find no tensors equal
    return None if trainer.graph is None else _steps_of(trainer)


def _steps_of(trainer: Trainer) -> Iterator[None]:
    batches, train, augmentation = trainer.plan.batches(0), trainer.samples.train, trainer.samples.augmentation
    prepared = train.raw_batches if trainer.graph is not None else train.train_batches
    for step, micro_batches in enumerate(prepared(batches, 0, augmentation, batches)):
        trainer.progress.step = step
        result = step_that_fits(trainer.state, trainer.progress, micro_batches, float(BATCH), trainer.graph)
        trainer.accumulator.add(step, result)
        trainer.schedule.after_step()
        trainer.state.ema.update()
        yield


def bare(config: Config, dataset: Dataset, accelerator: Accelerator) -> Iterator[None] | None:
    """The steps of a loop that does nothing but train: on one batch of the device, torch's own optimizer kernels."""
    return _plain_steps(config, accelerator, looks_at_values=False)


def torchvision_reference(config: Config, dataset: Dataset, accelerator: Accelerator) -> Iterator[None] | None:
    """The steps of torchvision's reference script for classification, which reads loss and accuracy at each."""
    return _plain_steps(config, accelerator, looks_at_values=True)


LOOPS: Mapping[str, Loop] = {
    "ours": ours,
    "ours, captured": captured,
    "bare loop": bare,
    "torchvision": torchvision_reference,
}


def _plain_steps(config: Config, accelerator: Accelerator, *, looks_at_values: bool) -> Iterator[None] | None:
    optimizer_class = getattr(torch.optim, config.optimizer.name, None)
    if optimizer_class is None or config.model.name == "cifar10_fast":
        return None
    trainer = build_trainer(config, make_dataset(BATCH, size=int(config.data.image_size)), accelerator, None)  # type: ignore[arg-type]
    model, device = trainer.state.classifier.module, accelerator.device
    model.forward = getattr(model, "_original_forward", model.forward)  # Accelerate's, for the precision
    optimizer = optimizer_class(model.parameters(), **config.optimizer.args | {"fused": None})
    images = torch.zeros(BATCH, 3, config.data.image_size, config.data.image_size).pin_memory()  # type: ignore[arg-type]
    labels = torch.zeros(BATCH, dtype=torch.int64).pin_memory()
    return _loop(model, optimizer, images, labels, device, config.train.precision == "bf16", looks_at_values)


def _loop(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    device: torch.device,
    is_bf16: bool,
    looks_at_values: bool,
) -> Iterator[None]:
    criterion = nn.CrossEntropyLoss()
    while True:
        batch, targets = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast("cuda", torch.bfloat16) if is_bf16 else nullcontext():
            outputs = model(batch)
            loss = criterion(outputs, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if looks_at_values:
            correct = outputs.topk(5).indices.t().eq(targets[None])
            for rows in (1, 5):
                correct[:rows].flatten().sum(dtype=torch.float32).mul(100.0 / BATCH).item()
            loss.item()
        yield


def _on_host(images: ImageSet) -> ImageSet:
    return ImageSet(_HostImages(images.images.images_NCHW), images.labels_N)  # type: ignore[attr-defined]


class _HostImages:
    """Pictures that come from pinned memory of the host, as those that threads decode."""

    def __init__(self, images_NCHW: Tensor, device: torch.device | None = None):
        self.images_NCHW, self.device = images_NCHW, device

    def __len__(self) -> int:
        return len(self.images_NCHW)

    def to(self, device: torch.device) -> _HostImages:
        return _HostImages(self.images_NCHW, device)

    def batches(self, ids: Sequence[Tensor], epoch: int | None = None, draws: Any = None) -> Iterator[Tensor]:
        for ids_B in ids:
            yield self.images_NCHW[ids_B].pin_memory().to(self.device, non_blocking=True)
