"""Small trainings that are run on CPU ranks and on emulated GPUs: what both must give in every bit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ranks
import torch
from parts import Rows, build_trainer, make_dataset, resolved
from torch import Tensor

from trainlib.config import Config
from trainlib.distributed import process_group
from trainlib.distributed.allreduce import shared_memory
from trainlib.distributed.consensus.channel import open_channel
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.errors import NonFiniteError
from trainlib.models.weights.files import weights_sha256
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.training.hooks import TrackerHook
from trainlib.training.step.update import CheckedUpdate, rates_of_float32
from trainlib.training.tuning.feature_cache import cache_features

# Fused on CPUs as well, where they round in another way than torch's loop does.
SGD = {"name": "SGD", "lr": 0.05, "momentum": 0.9, "fused": True}
CNN = {"name": "cifar10_cnn"}
BASE: Mapping[str, Any] = {
    "data": {"name": "synthetic", "val_fraction": 0.25, "augment": {"flip": True, "crop_padding": 2}},
    "model": CNN,
    "optimizer": SGD,
    "scheduler": {"name": "LinearLR", "total_iters": 8, "interval": "step"},
    "train": {"steps": 4, "batch_size": 8},
    "tracking": {"log_every": 1},
}
TRAINING: dict[str, Any] = BASE["train"]
PLAIN_DATA = {"name": "synthetic", "val_fraction": 0.25, "augment": {}}

# By name: what differs from BASE.
TRAININGS: Mapping[str, Mapping[str, Any]] = {
    "cnn": {},
    "adamw and clipping": {
        "optimizer": {"name": "AdamW", "lr": 0.001, "fused": True},
        "train": TRAINING | {"clip_grad_norm": 0.5},
    },
    "bf16": {"train": TRAINING | {"precision": "bf16"}},
    "elastic": {"train": TRAINING | {"reproducibility": "elastic", "virtual_shards": 4}},
    "elastic resnet18": {
        "model": {"name": "resnet18"},
        "train": {"steps": 2, "batch_size": 8, "reproducibility": "elastic", "virtual_shards": 4},
    },
    "average": {"train": TRAINING | {"average": {"decay": 0.9}}},
    "micro-batches": {"train": TRAINING | {"micro_batch_size": 2}},
    "test-time views": {"evaluation": {"test_time": "flip_translate"}},
    "feature cache": {"data": PLAIN_DATA, "model": CNN | {"freeze": "features", "cache_features": True}},
    "resnet18": {"model": {"name": "resnet18"}, "train": {"steps": 2, "batch_size": 8}},
    # Dropout; at 224 pixels, its average pooling changes nothing.
    "vgg16": {
        "data": PLAIN_DATA | {"image_size": 224},
        "model": {"name": "vgg16", "width": 0.0625},
        "train": {"steps": 2, "batch_size": 4},
    },
}
# A rate for each of three groups: matrices of a fixed norm, those that shrink, and what SGD updates.
MUON = {
    "name": "MuonSGD",
    "lr": 0.1,
    "momentum": 0.6,
    "normalize_weights": True,
    "param_groups": [
        {"match": "*.bias", "lr": 0.05, "weight_decay": 0.001},
        {"match": "head", "lr": 0.01, "normalize_weights": False, "weight_decay": 0.01},
    ],
}
# Trained with graphs and without: epochs of 8, 8 and 2 images, the learning rate changes at each step.
LONGER = {"steps": 9, "batch_size": 8}
CAPTURED: Mapping[str, Mapping[str, Any]] = {
    "cnn, average and audits": {"train": LONGER | {"average": {"decay": 0.9}, "audit": 5}},
    "vgg16, dropout, clipping": {
        "model": {"name": "vgg16", "width": 0.0625},
        "optimizer": {"name": "AdamW", "lr": 0.001, "fused": True},
        "train": LONGER | {"clip_grad_norm": 1.0},
    },
    "cnn, bf16, MuonSGD": {"optimizer": MUON, "train": LONGER | {"precision": "bf16"}},
    "resnet18, bf16": {"model": {"name": "resnet18"}, "train": LONGER | {"precision": "bf16"}},
    "resnet18, MuonSGD": {"model": {"name": "resnet18"}, "optimizer": MUON, "train": LONGER},
}
# The weights leave all bounds in the seventh step, and the eighth one is not applied.
DIVERGING = {
    "scheduler": {"name": "MultiStepLR", "milestones": [6], "gamma": 1e30, "interval": "step"},
    "train": LONGER,
    "tracking": {"log_every": 20},
}
NUM_IMAGES = 24
ELASTIC = ("elastic", "elastic resnet18")
ON_THREE = ("cnn", "micro-batches", *ELASTIC)  # more would take long


def train_all(names: list[str], output: str) -> None:
    """Run these trainings one after another, as one of the ranks; rank 0 writes what they gave to a file."""
    ranks.replace(shared_memory, "_mean", _scaled_first)
    ranks.replace(CheckedUpdate, "apply", _with_rates_of_float32)
    results = {}
    first_port = int(os.environ.get("MASTER_PORT", "0"))
    for i, name in enumerate(names):
        # A port for each: ranks would find each other's keys of the training before at the same one.
        os.environ["MASTER_PORT"] = str(first_port + i)
        results[name] = trained(resolved({**BASE, **TRAININGS[name]}))
    if os.environ.get("RANK", "0") == "0":
        Path(output).write_text(json.dumps(results))


def trained(config: Any) -> dict[str, Any]:
    """Return the digest of the weights after a training, the rows that it wrote, and the device."""
    rows = Rows()
    size = config.data.image_size
    with process_group.joined(config.train) as accelerator:
        dataset = make_dataset(NUM_IMAGES, size=size if isinstance(size, int) else size[0])
        trainer = build_trainer(
            config,
            dataset,
            accelerator,
            caching=lambda inputs: cache_features(inputs, 0, lambda: False, lambda: None),
            hooks=[TrackerHook(rows)],
        )
        assert trainer.run(StopConsensus(StopFlag(), open_channel(config.train)))
        with trainer.state.ema.swapped_in():
            digest = weights_sha256(trainer.state.classifier.module.state_dict())
        is_captured = trainer.graph is not None and trainer.graph.is_captured
        return {
            "weights": digest,
            "rows": rows.without_times(),
            "device": accelerator.device.type,
            "captured": is_captured,
        }


_apply = CheckedUpdate.apply


def _with_rates_of_float32(update: CheckedUpdate, *args: Any) -> Any:
    """Step on CPUs with the learning rates that GPUs have."""
    with rates_of_float32(update.stepped):
        return _apply(update, *args)


def train_captured(name: str, output: str) -> None:
    """Write what a training of CAPTURED gives with graphs and without, by `train.cuda_graph`."""
    config = resolved({**BASE, **CAPTURED[name]})
    results = {str(choice): trained(with_graph(config, choice)) for choice in ("auto", False)}
    Path(output).write_text(json.dumps(results))


def train_diverging(output: str) -> None:
    """Write how training of DIVERGING ends with graphs and without, by `train.cuda_graph`."""
    results = {}
    for choice in ("auto", False):
        config = with_graph(resolved({**BASE, **DIVERGING}), choice)
        with process_group.joined(config.train) as accelerator:
            trainer = build_trainer(config, make_dataset(NUM_IMAGES), accelerator, None)
            try:
                trainer.run(StopConsensus(StopFlag(), None))
            except NonFiniteError as error:
                told = str(error)
            results[str(choice)] = {
                "told": told,
                "step": trainer.progress.step,
                "weights": weights_sha256({str(i): p for i, p in enumerate(trainer.state.parameters)}),
                "captured": trainer.graph is not None and trainer.graph.is_captured,
            }
    Path(output).write_text(json.dumps(results))


def with_graph(config: Config, choice: str | bool) -> Config:
    """Return the configuration with this `train.cuda_graph`."""
    return config.model_copy(update={"train": config.train.model_copy(update={"cuda_graph": choice})})


def _scaled_first(memory: Any, values: Tensor, pace: object) -> torch.futures.Future[Tensor]:
    """Average a bucket as DistributedDataParallel does with NCCL: our sum on CPUs is divided afterwards."""
    values.mul_(1 / memory.world_size)
    memory.all_reduce(values)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(values)
    return done
