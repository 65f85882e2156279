"""`train.keep_batchnorm`: BatchNorm normalises with the statistics that came with the weights, in training too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from parts import build_trainer, make_dataset
from torch import nn
from torchvision.models import resnet18

from trainlib.config import load_config
from trainlib.distributed import process_group
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.errors import ConfigError
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.training.trainer import Trainer

COMMON = ["quickstart", "name=x", "train={steps: 3, batch_size: 8, keep_batchnorm: true}", "scheduler=null"]
COMMON += ["optimizer={name: SGD, lr: 0.01}", "data={name: synthetic, val_fraction: 0}"]


@pytest.fixture(scope="module")
def accelerator() -> Iterator[Accelerator]:
    with process_group.joined(load_config(["quickstart"]).train) as joined:
        yield joined


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network whose statistics are none that its layers begin with."""
    torch.manual_seed(0)
    module = resnet18(num_classes=10)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    torch.save(module.state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def small(num_classes: int) -> nn.Module:
    """A network of one's own, with statistics that no layer begins with."""
    norm = nn.BatchNorm2d(4)
    nn.init.constant_(norm.running_mean, 0.1)  # type: ignore[arg-type]
    nn.init.constant_(norm.running_var, 0.5)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2), norm, nn.Flatten(), nn.Linear(900, num_classes))


def trained(accelerator: Accelerator, *words: str, model: Callable[[int], nn.Module] | None = None) -> Trainer:
    config = load_config([*COMMON, *words], custom={} if model is None else {"model": "custom:small"})
    trainer = build_trainer(config, make_dataset(24), accelerator, custom=CustomParts(model=model))
    assert trainer.run(StopConsensus(StopFlag(), None))
    return trainer


def is_statistic(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_statistics_stay_and_all_else_learns(accelerator: Accelerator, weights: Path) -> None:
    before = torch.load(weights, weights_only=True)
    stages = "freeze: backbone, unfreeze: [{match: '*', at: 1st}]"
    after = trained(accelerator, f"model={{name: resnet18, weights: {weights}, {stages}}}").state.classifier.module
    for name, tensor in after.state_dict().items():
        assert torch.equal(before[name], tensor) == is_statistic(name), name


def test_of_a_network_of_ones_own_they_stay_as_well(accelerator: Accelerator) -> None:
    torch.manual_seed(0)
    after = trained(accelerator, model=small).state.classifier.module.state_dict()
    before = small(10).state_dict()
    assert [name for name in after if torch.equal(before[name], after[name])] == list(filter(is_statistic, after))


def test_what_a_batch_is_cut_into_does_not_matter(accelerator: Accelerator) -> None:
    """As a picture gives the same in every batch, which is not so of BatchNorm that learns."""
    runs = [trained(accelerator, f"train.micro_batch_size={size}", model=small) for size in (8, 3)]
    one, other = (run.state.classifier.module.state_dict() for run in runs)
    assert all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-6) for name in one)


def test_a_network_without_batchnorm_is_trained_as_ever(accelerator: Accelerator) -> None:
    runs = [trained(accelerator, "model={name: cifar10_cnn}", f"train.keep_batchnorm={keep}") for keep in (True, False)]
    one, other = (run.state.classifier.module.state_dict() for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_statistics_over_all_processes_are_refused_beside_it() -> None:
    with pytest.raises(ConfigError, match=r"model.sync_batchnorm: got true, but train.keep_batchnorm is true"):
        load_config(["quickstart", "model={name: resnet18, sync_batchnorm: true}", "train.keep_batchnorm=true"])
