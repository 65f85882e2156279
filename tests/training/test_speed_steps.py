"""What makes steps fast, by what can be counted: layouts, page faults, and look-ups of packages. Never by a time."""

import importlib.util
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from parts import build_trainer, make_dataset, resolved
from torch import nn

from trainlib.data.pictures.decoding.threads import decoding_pool
from trainlib.distributed import process_group
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.machine.kept_memory import keep_freed_memory
from trainlib.training.build.model import build_classifier
from trainlib.training.step.train_step import train_step
from trainlib.training.step.update import UpdateStatus

CNN = {"model": {"name": "cifar10_cnn"}, "data": {"name": "synthetic", "val_fraction": 0, "augment": {}}}


@pytest.mark.parametrize("model", ["{name: cifar10_cnn}", "{name: vgg16, width: 0.03}", "{name: resnet18}"])
def test_convolutions_and_what_flows_between_them_are_channels_last(model: str) -> None:
    """The values are those of the layout that torch builds in: only strides differ."""
    import yaml

    config = resolved(CNN | {"model": yaml.safe_load(model)})
    module = build_classifier(config, 10, torch.device("cpu")).module.eval()
    outputs = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)
            layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output))
    images_NCHW = torch.randn(2, 3, 32, 32)
    logits_NC = module(images_NCHW)
    assert outputs
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in outputs)
    module.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(module(images_NCHW), logits_NC, rtol=1e-4, atol=1e-5)


def test_a_given_model_keeps_its_layout() -> None:
    """It may `view` what its convolutions give, which only works in the layout that it was written for."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 32 * 32, 10)

        def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.linear(self.convolution(images_NCHW).view(len(images_NCHW), -1))
            return logits

    config = resolved(CNN | {"train": {"steps": 1, "batch_size": 8}})
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, make_dataset(16), accelerator, None, CustomParts(model=Viewing()))
        [micro_batches] = trainer.samples.train.train_batches(
            trainer.plan.batches(0)[:1], 0, trainer.samples.augmentation
        )
        assert train_step(trainer.state, 0, micro_batches, 8.0).status is UpdateStatus.APPLIED


def test_a_step_looks_for_no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's optimizer wrapper asks twice a step whether a package is installed, which walks the search path."""
    asked: list[Any] = []
    find_spec = importlib.util.find_spec

    def asking(*name: Any) -> Any:
        asked.append(name)
        return find_spec(*name)

    config = resolved(CNN | {"train": {"steps": 2, "batch_size": 8}})
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, make_dataset(16), accelerator, None)
        steps = list(trainer.samples.train.train_batches(trainer.plan.batches(0), 0, trainer.samples.augmentation))
        assert (
            train_step(trainer.state, 0, steps[0], 8.0).status is UpdateStatus.APPLIED
        )  # the first one may import what it needs
        monkeypatch.setattr(importlib.util, "find_spec", asking)
        assert train_step(trainer.state, 1, steps[1], 8.0).status is UpdateStatus.APPLIED
        assert asked == []
        trainer.state.optimizer.step()
        assert asked, "Accelerate no longer looks: the exception in CheckedUpdate.stepped can go"


def test_a_loss_that_is_not_finite_is_noticed_where_its_gradient_is() -> None:
    """A loss of infinity with finite gradients, on one process: the step is not applied, no weight moves."""

    def infinite_but_flat(logits_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        return logits_NC.sum(dim=1) + (torch.inf if logits_NC.requires_grad else 0.0)

    config = resolved(CNN | {"train": {"steps": 1, "batch_size": 8}})
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, make_dataset(16), accelerator, None, CustomParts(loss=infinite_but_flat))
        before = [parameter.clone() for parameter in trainer.state.classifier.module.parameters()]
        [micro_batches] = trainer.samples.train.train_batches(
            trainer.plan.batches(0)[:1], 0, trainer.samples.augmentation
        )
        assert train_step(trainer.state, 0, micro_batches, 8.0).status is UpdateStatus.SKIPPED
        after = list(trainer.state.classifier.module.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def _count_page_faults(keep: Callable[[], object]) -> int:
    """In a rank: page faults of filling a block as large as a layer's output, taken and given back again and again."""
    keep()
    faults = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(16, 64, 112, 112).add_(1.0)  # 51 MB: above all that glibc keeps by itself
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(statistics.median(faults))  # what else is allocated may move the block once or twice
    return 0


def _keep_nothing() -> None:
    pass


def _keep_as_on_a_cpu() -> None:
    keep_freed_memory({})


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_is_kept_from_step_to_step_and_where_pictures_are_decoded(tmp_path: Path) -> None:
    faults = []
    for keep in (_keep_nothing, _keep_as_on_a_cpu, decoding_pool):
        assert ranks.run(_count_page_faults, keep, world_size=1, cwd=tmp_path) == [0]
        faults.append(int(ranks.console(tmp_path).split()[-1]))
    assert faults[0] > 10
    assert faults[1] < 10
    assert faults[2] < 10
