"""Ten steps of each recipe on synthetic pictures, small ones, with all its ingredients."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from accelerate import Accelerator
from parts import build_trainer
from tiers import quick_or_soak

from trainlib.config import load_config, shipped_configs
from trainlib.data import load_data
from trainlib.distributed import process_group
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.models.weights.ema import NoAverage
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.training.hooks import Hook
from trainlib.training.step.train_step import StepResult
from trainlib.training.trainer import Trainer

RECIPES = [name for name, path in shipped_configs().items() if path.parent.name == "recipes" or name == "finetune"]
SMALL = [
    "data.name=synthetic",
    "data.limit=64",
    "data.image_size=64",
    "data.resize.size=auto",
    "train.batch_size=16",
    "train.steps=10",
    "train.precision=fp32",
]
CHANGES = {
    "linear_probe": ["model.weights=null"],
    "finetune": ["model.weights=null"],
    "finetune_small_data": [
        "model.weights=null",
        "model.unfreeze=[{match: 'layer4.*', at: 3st}, {match: '*', at: 6st}]",
    ],
    "resnet50_v2": ["data.train_image_size=48"],
    "efficientnet_v2_s": ["data.train_image_size=48"],
    "resnet50_a3": ["data.image_size=32", "data.train_image_size=32"],
}


@pytest.fixture(scope="module")
def accelerator() -> Iterator[Accelerator]:
    with process_group.joined(load_config(["quickstart"]).train) as joined:
        yield joined


class Norms(Hook):
    """Notes the norm of each step's gradient."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        self.values.append(float(result.grad_norm))


@pytest.mark.parametrize("name", quick_or_soak(["mobilenet_v3_large"], RECIPES))
def test_ten_steps(name: str, accelerator: Accelerator) -> None:
    if name in ("resnet50_a1", "resnet50_a2", "resnet50_a3"):
        pytest.importorskip("timm")
    config = load_config([name, *SMALL, *CHANGES.get(name, [])])
    norms = Norms()
    trainer = build_trainer(config, load_data(config.data, config.seed), accelerator, hooks=[norms])
    before = {key: value.clone() for key, value in trainer.state.classifier.module.state_dict().items()}
    assert trainer.run(StopConsensus(StopFlag(), None))
    assert trainer.progress.step == len(norms.values) == 10
    assert all(math.isfinite(norm) and norm > 0 for norm in norms.values)
    after = trainer.state.classifier.module.state_dict()
    changed = {key.split(".")[0] for key in before if not before[key].equal(after[key])}
    if name == "linear_probe":
        assert changed == {"fc"}
    else:
        assert changed == {key.split(".")[0] for key in before}, "every part of the network learns"
    assert (config.train.average is None) == isinstance(trainer.state.ema, NoAverage)
