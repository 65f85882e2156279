"""Gradual unfreezing: each step is that of a plain loop, and stopping at any step around a stage changes no bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch
from accelerate import Accelerator
from parts import Rows, build_trainer, make_dataset, resolved
from soak import only_in_soak
from stopping import STEPS, VGG, train_until
from torch import Tensor, nn

from trainlib.distributed import process_group
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.errors import EXIT_STOPPED, UserError
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.training.hooks import Hook
from trainlib.training.hooks.health import HealthHook
from trainlib.training.step.train_step import StepResult
from trainlib.training.trainer import Trainer

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def accelerator() -> Iterator[Accelerator]:
    with process_group.joined(resolved({}).train) as joined:
        yield joined


class Watch(Hook):
    """Notes the weights after every step."""

    def __init__(self) -> None:
        self.states: list[State] = []
        self.norms: list[float] = []

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        module = trainer.state.classifier.module
        self.states.append({name: tensor.detach().clone() for name, tensor in module.state_dict().items()})
        self.norms.append(float(result.grad_norm))


def config_of(**train: Any) -> dict[str, Any]:
    return {
        "data": {"name": "synthetic", "val_fraction": 0.2, "augment": {}},
        "model": {
            "name": "shufflenet_v2_x0_5",
            "freeze": "backbone",
            "unfreeze": [{"match": "conv5.*", "at": "3st"}, {"match": "stage[34].*", "at": "1ep"}],
        },
        "optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
        "scheduler": None,
        "train": {"epochs": 2, "batch_size": 12, "clip_grad_norm": 0.5, **train},
    }


@pytest.mark.parametrize("mode", ["exact", "elastic"])
def test_every_step_is_that_of_a_plain_loop(accelerator: Accelerator, mode: str) -> None:
    """Gradients, clipping, momentum from the first gradient on, weight decay, and BatchNorm's statistics."""
    shards = {"reproducibility": "elastic", "virtual_shards": 1} if mode == "elastic" else {}
    watch, dataset = Watch(), make_dataset(60, size=32)
    trainer = build_trainer(resolved(config_of(**shards)), dataset, accelerator, hooks=[watch])
    plain = make_plain(trainer)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    assert trainer.run(StopConsensus(StopFlag(), None))
    batches = [ids for epoch in (0, 1) for ids in trainer.plan.batches(epoch)]
    assert len(batches) == len(watch.states) == 8
    for step, ids in enumerate(batches):
        open_parts = ["fc", *(["conv5"] if step >= 3 else []), *(["stage3", "stage4"] if step >= 4 else [])]
        plain.eval()
        for name, child in plain.named_children():
            child.train(name in open_parts)
            child.requires_grad_(name in open_parts)
        (images,) = dataset.train.images.batches([ids])
        loss = nn.functional.cross_entropy(plain((images / 255 - 0.5) / 0.25), dataset.train.labels_N[ids])
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        assert watch.norms[step] == pytest.approx(float(norm), rel=1e-3)
        optimizer.step()
        for name, tensor in plain.state_dict().items():
            moved = float((tensor - before[name]).double().norm())
            off = float((watch.states[step][name] - tensor).double().norm())
            assert off <= 0.05 * moved + 1e-6, (step, name)
            assert moved or not off, (step, name)
        before = watch.states[step]
        plain.load_state_dict(watch.states[step])  # so that differences of the last bits do not grow from step to step


def make_plain(trainer: Trainer) -> nn.Module:
    from torchvision.models import shufflenet_v2_x0_5

    plain: nn.Module = shufflenet_v2_x0_5(num_classes=10)
    plain.load_state_dict(trainer.state.classifier.module.state_dict())
    return plain


def test_the_average_holds_every_parameter_from_the_start(accelerator: Accelerator) -> None:
    watch = Watch()
    config = resolved(config_of(average={"decay": 0.5, "every": 1, "warmup": "none"}))
    trainer = build_trainer(config, make_dataset(60, size=32), accelerator, hooks=[watch])
    initial = {name: value.clone() for name, value in trainer.state.classifier.module.state_dict().items()}
    assert trainer.run(StopConsensus(StopFlag(), None))
    average = initial["conv5.0.weight"].double()
    for update, state in enumerate(watch.states, 1):
        average = state["conv5.0.weight"].double() if update == 1 else (average + state["conv5.0.weight"]) / 2
    with trainer.state.ema.swapped_in():
        ours = trainer.state.classifier.module.state_dict()
        assert torch.allclose(ours["conv5.0.weight"].double(), average, rtol=1e-5, atol=1e-7)
        assert torch.equal(ours["stage2.0.branch1.0.weight"], initial["stage2.0.branch1.0.weight"])


def test_health_looks_at_what_is_trained_now(accelerator: Accelerator) -> None:
    rows = Rows()
    hooks = [HealthHook([rows], 1)]
    trainer = build_trainer(resolved(config_of()), make_dataset(60, size=32), accelerator, hooks=hooks)
    assert trainer.run(StopConsensus(StopFlag(), None))
    looked = [{name.split(".")[0] for name in row["update_ratio"]} for row in rows]
    assert looked == [{"fc"}] * 3 + [{"fc", "conv5"}] + [{"fc", "conv5", "stage3", "stage4"}] * 4


def test_a_batch_of_one_is_refused_at_the_start(accelerator: Accelerator) -> None:
    """Frozen BatchNorm takes a single image; the one that is trained later does not."""
    config = config_of()
    config["train"] |= {"batch_size": 47, "reproducibility": "elastic", "virtual_shards": 1}
    with pytest.raises(UserError, match="cannot learn from 1 image"):
        build_trainer(resolved(config), make_dataset(60, size=32), accelerator)


# In epochs of four steps: the classifier's other layers, the last convolutions, all of them.
MODEL = (
    "model={name: vgg16, width: 0.03, dropout: 0.5, freeze: backbone, unfreeze: [{match: 'classifier.*', at: 2st},"
    " {match: 'features.2*', at: 1ep}, {match: 'features.*', at: 6st}]}"
)
NORM = (
    "model={name: shufflenet_v2_x0_5, freeze: backbone, unfreeze: [{match: 'conv5.*', at: 2st},"
    " {match: 'stage4.*', at: 1ep}, {match: '*', at: 6st}]}"
)
AVERAGE = "train.average={decay: 0.9, warmup: 3st}"
ELASTIC = ("train.reproducibility=elastic", "train.virtual_shards=2")  # no piece of one image
AROUND = (1, 2, 3, 4, 5, 6, 7)
SGD = "optimizer={name: SGD, lr: 0.01, momentum: 0.9, weight_decay: 0.01}"


def assert_resumes(tmp_path: Path, arguments: list[str], world_size: int, steps: Iterable[int]) -> None:
    whole = tiny.in_folder(tmp_path, "whole")
    assert ranks.train(arguments, world_size=world_size, cwd=whole) == [0] * world_size, ranks.console(whole)
    assert len([row for row in tiny.rows(whole) if row.get("scope") == "step"]) == STEPS
    for step in steps:
        cwd = tiny.in_folder(tmp_path, f"stopped-at-{step}")
        codes = ranks.run(train_until, arguments, step, world_size=world_size, cwd=cwd)
        assert codes == [EXIT_STOPPED] * world_size, ranks.console(cwd)
        assert ranks.train(arguments, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
        tiny.assert_same_result(cwd, whole)


@only_in_soak
def test_stopping_where_a_stage_begins_changes_no_bit(tmp_path: Path) -> None:
    assert_resumes(tmp_path, [*VGG, MODEL, AVERAGE], 1, [4])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "changes", "steps"),
    [
        pytest.param(1, (MODEL,), AROUND, id="1-rank"),
        pytest.param(1, (NORM, SGD, AVERAGE), AROUND, id="1-rank-norm", marks=only_in_soak),
        pytest.param(2, (MODEL, AVERAGE), AROUND, id="2-ranks", marks=only_in_soak),
        pytest.param(2, (NORM, SGD), AROUND, id="2-ranks-norm", marks=only_in_soak),
        pytest.param(2, (NORM, *ELASTIC), AROUND, id="elastic", marks=only_in_soak),
        pytest.param(3, (MODEL, SGD), (1, 4), id="3-ranks", marks=only_in_soak),
    ],
)
def test_stopping_at_every_step_around_a_stage_changes_no_bit(
    tmp_path: Path, world_size: int, changes: tuple[str, ...], steps: tuple[int, ...]
) -> None:
    assert_resumes(tmp_path, [*VGG, *changes], world_size, steps)


@pytest.mark.slow
def test_elastic_stages_are_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    """Stopped on one rank within a stage and resumed on two, and the other way round."""
    arguments = [*VGG, NORM, *ELASTIC, AVERAGE]
    whole = tiny.in_folder(tmp_path, "whole")
    assert ranks.train(arguments, cwd=whole) == [0], ranks.console(whole)
    for first, then, step in ((1, 2, 3), (2, 1, 3)):
        cwd = tiny.in_folder(tmp_path, f"{first}-then-{then}")
        codes = ranks.run(train_until, arguments, step, world_size=first, cwd=cwd)
        assert codes == [EXIT_STOPPED] * first, ranks.console(cwd)
        assert ranks.train(arguments, world_size=then, cwd=cwd) == [0] * then, ranks.console(cwd)
        tiny.assert_same_result(cwd, whole)


@only_in_soak
def test_stopping_at_every_step_in_turn_changes_no_bit(tmp_path: Path) -> None:
    whole, stopped = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "stopped")
    arguments = [*VGG, MODEL]
    assert ranks.train(arguments, cwd=whole) == [0]
    for _ in range(STEPS - 1):
        assert ranks.run(train_until, arguments, 1, world_size=1, cwd=stopped) == [EXIT_STOPPED], ranks.console(stopped)
    assert ranks.train(arguments, cwd=stopped) == [0]
    tiny.assert_same_result(stopped, whole)
