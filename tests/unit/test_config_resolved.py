"""The resolved configuration: complete, definite, and the same after being saved and loaded again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainlib.config import (
    Config,
    Difference,
    differences,
    dump_config,
    is_harmless,
    load_config,
    read_resolved,
    shipped_configs,
)


def load(workdir: Path, text: str = "seed: 0", *overrides: str) -> Config:
    (workdir / "x.yaml").write_text(text)
    return load_config(["x.yaml", *overrides])


def test_the_defaults_are_those_of_the_contract(workdir: Path) -> None:
    config = load(workdir)
    assert (config.name, config.train.epochs, config.train.steps) == ("x", 20, None)
    assert config.optimizer.model_dump() == {
        "name": "SGD",
        "no_decay": "none",
        "layer_decay": None,
        "param_groups": [],
        "lr": 0.01,
        "momentum": 0.9,
    }
    assert config.loss.model_dump() == {
        "name": "CrossEntropyLoss",
        "activation": "none",
        "reduction": "mean",
        "target_threshold": None,
    }
    assert config.checkpoint.model_dump() == {
        "every": "1ep",
        "keep": 3,
        "best": {"metric": "val/accuracy", "mode": "max"},
        "background": False,
        "after": None,
    }
    assert config.scheduler is None


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("optimizer: {lr: 0.1}", "optimizer.args", {"lr": 0.1, "momentum": 0.9}),
        ("optimizer: {name: Adadelta}", "optimizer.args", {"lr": 1.0}),
        ("optimizer: {name: AdamW, weight_decay: 0.1}", "optimizer.args", {"lr": 1e-3, "weight_decay": 0.1}),
        ("data: {val_fraction: 0}", "checkpoint.best", None),
        ("data: {val_fraction: 0}\ncheckpoint: {best: {metric: train/loss}}", "checkpoint.best.mode", "min"),
        ("checkpoint: {best: {metric: val/loss}}", "checkpoint.best.mode", "min"),
        ("checkpoint: {best: {}}", "checkpoint.best.mode", "max"),
        ("train: {early_stopping: {}}", "train.early_stopping.mode", "min"),
        ("train: {early_stopping: {metric: val/accuracy}}", "train.early_stopping.mode", "max"),
        ("train: {steps: 5}", "train.epochs", None),
        ("scheduler: {name: ReduceLROnPlateau}", "scheduler.metric", "val/loss"),
        ("scheduler: {name: ReduceLROnPlateau}", "scheduler.args", {"mode": "min"}),
        ("scheduler: {name: ReduceLROnPlateau, metric: train/accuracy}", "scheduler.args", {"mode": "max"}),
        ("data: {val_fraction: 0}\nscheduler: {name: ReduceLROnPlateau}", "scheduler.metric", "train/loss"),
        ("scheduler: {name: CosineAnnealingLR}", "scheduler.args", {}),
    ],
)
def test_dependent_defaults(workdir: Path, text: str, key: str, value: object) -> None:
    found: Any = load(workdir, text)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("loss", "activation"),
    [
        ("CrossEntropyLoss", "none"),
        ("NLLLoss", "log_softmax"),
        ("BCELoss", "sigmoid"),
        ("BCEWithLogitsLoss", "none"),
        ("L1Loss", "softmax"),
        ("SmoothL1Loss", "softmax"),
        ("HuberLoss", "softmax"),
        ("MSELoss", "softmax"),
        ("MultiMarginLoss", "none"),
    ],
)
def test_each_loss_has_an_activation(workdir: Path, loss: str, activation: str) -> None:
    assert load(workdir, f"loss: {{name: {loss}}}").loss.activation == activation
    assert load(workdir, f"loss: {{name: {loss}, activation: softmax}}").loss.activation == "softmax"


SAVED = [
    "seed: 9223372036854775807",
    "optimizer: {lr: 1e-5}",
    "optimizer: {name: Adam, lr: 1, betas: [0.9, 0.999], eps: 1.0e-12, amsgrad: true, foreach: null}",
    "optimizer: {name: Adafactor, eps: [null, 1e-3]}",
    "optimizer: {param_groups: [{match: 'features.*', lr: 1e-5}, {match: '*', weight_decay: 0}]}",
    "train: {precision: no, steps: 7, clip_grad_norm: 1, early_stopping: {patience: 2}}",
    "data: {root: 'no', normalize: none, augment: {}}",
    "data: {root: '1e-3', normalize: {mean: [0.1, 0.2, 0.3], std: [1, 1.0, 2]}}",
    "data: {root: '0o17'}",
    "data: {root: ' spaces: and # marks '}",
    "data: {root: 'déjà\\nvu'}",
    "data: {root: '2024-01-01'}",
    "data: {root: '~'}",
    "data: {root: ''}",
    "data: {root: '<<'}",
    "data: {root: '=', val_fraction: 0}",
    "scheduler: {name: ReduceLROnPlateau, factor: 0.5}",
    "scheduler: [{name: LinearLR, duration: 5ep, interval: step}, {name: MultiStepLR, milestones: [1, 2]}]",
    "loss: {weight: [1, 2.5, 0], label_smoothing: 0}",
    "model: {name: resnet18, weights: IMAGENET1K_V1, replace_stride_with_dilation: [false, true, false]}",
    "slurm: {time: 01:00:00, partition: 'null'}",
    "slurm: {nodes: 1-4}\ntrain: {reproducibility: elastic}",
    "tracking: {wandb: {mode: disabled}}\ncheckpoint: {best: null}",
]


def test_a_range_of_nodes_may_be_written_as_launch_run_has_it(workdir: Path) -> None:
    for text in ("2:4", "'2:4'", "2-4"):
        assert load(workdir, f"slurm: {{nodes: {text}}}\ntrain: {{reproducibility: elastic}}").slurm.nodes == "2-4"


@pytest.mark.parametrize("text", SAVED)
def test_a_saved_configuration_is_the_same(workdir: Path, text: str) -> None:
    config = load(workdir, text)
    saved = workdir / "config.yaml"
    saved.write_text(dump_config(config), encoding="utf-8")
    assert read_resolved(saved) == config
    assert load_config([str(saved)]) == config
    assert dump_config(read_resolved(saved)) == dump_config(config)


def test_text_is_quoted_for_other_yaml_readers_too(workdir: Path) -> None:
    config = load(workdir, "data: {root: 'no'}\nslurm: {partition: 'on'}")
    read = yaml.safe_load(dump_config(config))
    assert (read["data"]["root"], read["slurm"]["partition"]) == ("no", "on")


@pytest.mark.parametrize("name", ["no", "'no'", '"no"', "fp32"])
def test_no_and_fp32_are_one_precision(workdir: Path, name: str) -> None:
    config, default = load(workdir, f"train: {{precision: {name}}}"), load(workdir, "seed: 0")
    assert (config.train.precision, differences(config, default)) == ("fp32", [])
    assert dump_config(config) == dump_config(default)


def test_the_saved_text_is_meant_to_be_read(workdir: Path) -> None:
    config = load(workdir, "optimizer: {name: Adam, betas: [0.9, 0.99], param_groups: [{match: 'a*', lr: 1}]}")
    assert """\
optimizer:
  name: Adam
  no_decay: none
  layer_decay: null
  param_groups:
  - match: a*
    lr: 1
  betas: [0.9, 0.99]
  lr: 0.001
scheduler: null
""" in dump_config(config)


def test_a_configuration_loads_without_its_weights_file(workdir: Path) -> None:
    """A run that resumes from a checkpoint does not read it."""
    config = load(workdir, "model: {weights: gone/w.pt}")
    assert config.model.weights == "gone/w.pt"
    (workdir / "config.yaml").write_text(dump_config(config))
    assert read_resolved(workdir / "config.yaml") == config


def test_differences_name_every_value(workdir: Path) -> None:
    a = load(workdir, "scheduler: {name: StepLR, step_size: 5}")
    b = load(workdir, "scheduler: null", "optimizer.name=Adam", "train.epochs=30", "loss.weight=[1]", "seed=3")
    assert differences(a, a) == []
    assert differences(a, b) == [
        Difference("seed", 0, 3),
        Difference("loss.weight", None, [1]),
        Difference("optimizer.name", "SGD", "Adam"),
        Difference("optimizer.lr", 0.01, 0.001),
        Difference("optimizer.momentum", 0.9, None),
        Difference("scheduler", a.model_dump()["scheduler"], None),
        Difference("train.epochs", 20, 30),
    ]


@pytest.mark.parametrize(
    ("key", "harmless"),
    [
        ("train.epochs", True),
        ("train.steps", True),
        ("tracking.wandb.mode", True),
        ("slurm.nodes", True),
        ("checkpoint.keep", True),
        ("checkpoint.background", True),
        ("checkpoint.best", False),
        ("checkpoint.best.metric", False),
        ("checkpoint", False),
        ("train.epochs_per_eval", False),
        ("train.batch_size", False),
        ("train", False),
        ("seed", False),
        ("optimizer.lr", False),
    ],
)
def test_harmless_changes(key: str, harmless: bool) -> None:
    assert is_harmless(key) is harmless


def test_every_shipped_configuration_loads() -> None:
    shipped = shipped_configs()
    assert "quickstart" in shipped
    for name, path in shipped.items():
        assert load_config([name]) == load_config([str(path)])


def test_loading_imports_no_heavy_library() -> None:
    code = (
        "import sys; from trainlib.config import load_config;"
        "load_config(['quickstart', 'model.name=resnet18', 'scheduler={name: OneCycleLR, max_lr: 1}']);"
        "print([m for m in ('torch', 'torchvision', 'numpy', 'accelerate') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
