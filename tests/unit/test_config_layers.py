"""Several files, then the command line: what the merged configuration holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainlib.config import Config, load_config
from trainlib.config.load import name_from
from trainlib.config.schema.values import check_run_name
from trainlib.errors import ConfigError

BASE = """
name: base
data: {name: cifar10, root: here, image_size: 64, augment: {flip: true, crop_padding: 4}}
optimizer: {name: SGD, lr: 0.1, momentum: 0.9, param_groups: [{match: "a*", lr: 0.2}]}
scheduler: {name: StepLR, step_size: 5}
train: {epochs: 7, batch_size: 32}
"""

OWN_KEYS: dict[str, Any] = {"no_decay": "none", "layer_decay": None, "param_groups": []}  # of `optimizer` itself


def load(workdir: Path, *layers: str, overrides: tuple[str, ...] = ()) -> Config:
    for i, layer in enumerate(layers):
        (workdir / f"{i}.yaml").write_text(layer)
    return load_config([*(f"{i}.yaml" for i in range(len(layers))), *overrides])


def value_at(config: Config, key: str) -> Any:
    value: Any = config.model_dump()
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ("seed: 3", {"seed": 3, "name": "base", "optimizer.lr": 0.1}),
        ("name: other", {"name": "other", "optimizer.lr": 0.1, "train.epochs": 7}),
        ("optimizer: {lr: 0.5}", {"optimizer.lr": 0.5, "optimizer.momentum": 0.9}),
        ("optimizer: {name: SGD}", {"optimizer.lr": 0.1, "optimizer.momentum": 0.9}),
        ("optimizer: {name: AdamW}", {"optimizer": {"name": "AdamW", "lr": 1e-3, **OWN_KEYS}}),
        ("optimizer: {param_groups: []}", {"optimizer.param_groups": [], "optimizer.lr": 0.1}),
        ("scheduler: null", {"scheduler": None}),
        ("scheduler: {gamma: 0.5}", {"scheduler.step_size": 5, "scheduler.gamma": 0.5}),
        ("scheduler: [{name: ExponentialLR, gamma: 0.5}]", {"optimizer.lr": 0.1}),
        ("data: {name: image_folder}", {"data.name": "image_folder", "data.image_size": 64, "data.root": "here"}),
        ("data: {augment: {flip: false}}", {"data.augment.flip": False, "data.augment.crop_padding": 4}),
        ("data: {augment: {}}", {"data.augment.flip": False, "data.augment.crop_padding": 0}),
        ("train: {steps: 9}", {"train.steps": 9, "train.epochs": None, "train.batch_size": 32}),
        ("train: {steps: null}", {"train.epochs": 7, "train.steps": None}),
    ],
)
def test_a_later_file_is_laid_over_an_earlier(workdir: Path, over: str, expected: dict[str, Any]) -> None:
    config = load(workdir, BASE, over)
    assert {key: value_at(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "weights", "freeze", "unfreeze"),
    [
        (["finetune", "model.name=convnext_tiny"], "pretrained", "backbone", [("*", "1ep")]),
        (["finetune", "model.name=timm/resnet50.a1_in1k"], "pretrained", "backbone", [("*", "1ep")]),
        (["finetune", "model.name=resnet18", "model.weights=a.pth"], "a.pth", "backbone", [("*", "1ep")]),
        (["finetune", "model.name=resnet18", "model.freeze=null", "model.unfreeze=null"], "pretrained", None, []),
        (["linear_probe", "model.name=vit_b_16"], "pretrained", "backbone", []),
        (["finetune_small_data", "model.name=vit_b_16"], "pretrained", "backbone", [("*", "10ep")]),
        (["finetune", "model.unfreeze=[{match: layer4.*, at: 1ep}]"], "pretrained", "backbone", [("layer4.*", "1ep")]),
        (["finetune", "model={name: resnet18}"], None, None, []),
        (["finetune", "model.name=cifar10_cnn"], None, None, []),
        (["vgg16_finetune", "model.name=resnet18"], None, None, []),
    ],
)
def test_another_network_by_its_name_is_fine_tuned_as_the_first(
    arguments: list[str], weights: str | None, freeze: str | None, unfreeze: list[tuple[str, str]]
) -> None:
    model = load_config(arguments).model
    stages = [(stage.match, stage.at) for stage in model.unfreeze or []]
    assert (model.weights, model.freeze, stages) == (weights, freeze, unfreeze)


def test_what_layers_of_the_first_network_are_named_in_does_not_reach_another(workdir: Path) -> None:
    frozen = "model: {name: resnet18, weights: pretrained, freeze: backbone, unfreeze: [{match: layer4.*, at: 1ep}]}"
    model = load(workdir, frozen, overrides=("model.name=resnet34",)).model
    assert (model.weights, model.freeze, model.unfreeze) == ("pretrained", None, None)
    model = load(workdir, frozen, "model: {name: resnet34}").model  # a file's section with a name is complete
    assert (model.weights, model.freeze, model.unfreeze) == (None, None, None)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["optimizer.lr=1e-3"], {"optimizer.lr": 1e-3, "optimizer.momentum": 0.9}),
        (["optimizer={name: AdamW, lr: 1e-2}"], {"optimizer": {"name": "AdamW", "lr": 1e-2, **OWN_KEYS}}),
        (["optimizer={lr: 0.3}"], {"optimizer": {"name": "SGD", "lr": 0.3, "momentum": 0.9, **OWN_KEYS}}),
        (["optimizer.name=AdamW"], {"optimizer": {"name": "AdamW", "lr": 1e-3, **OWN_KEYS}}),
        (["optimizer.lr=0.5", "optimizer.name=AdamW"], {"optimizer": {"name": "AdamW", "lr": 0.5, **OWN_KEYS}}),
        (["optimizer.name=SGD"], {"optimizer.momentum": 0.9, "optimizer.lr": 0.1}),
        (["optimizer={name: Adam}", "optimizer.lr=2"], {"optimizer": {"name": "Adam", "lr": 2, **OWN_KEYS}}),
        (["optimizer.lr=2", "optimizer={name: Adam}"], {"optimizer": {"name": "Adam", "lr": 1e-3, **OWN_KEYS}}),
        (["optimizer.lr=2", "optimizer.lr=3"], {"optimizer.lr": 3}),
        (["scheduler=null"], {"scheduler": None}),
        (["scheduler=null", "scheduler.name=ExponentialLR", "scheduler.gamma=0.5"], {"scheduler.gamma": 0.5}),
        (["train.steps=5"], {"train.steps": 5, "train.epochs": None}),
        (["train.epochs=5"], {"train.steps": None, "train.epochs": 5}),
        (["train.precision=no", "slurm.time=02:00:00"], {"train.precision": "fp32", "slurm.time": "02:00:00"}),
        (["data.augment={}"], {"data.augment.flip": False, "data.augment.crop_padding": 0}),
        (
            ["data.name=synthetic"],
            {"data.name": "synthetic", "data.augment.flip": True, "data.augment.crop_padding": 4},
        ),
        (["checkpoint.best=null"], {"checkpoint.best": None}),
        (["train.early_stopping.patience=3"], {"train.early_stopping.patience": 3}),
    ],
)
def test_the_command_line_always_wins(workdir: Path, overrides: list[str], expected: dict[str, Any]) -> None:
    config = load(workdir, BASE, overrides=tuple(overrides))
    assert {key: value_at(config, key) for key in expected} == expected


DEFAULT_OPTIMIZER = {"name": "SGD", **OWN_KEYS, "lr": 0.01, "momentum": 0.9}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=0.02", DEFAULT_OPTIMIZER | {"lr": 0.02}),
        ("optimizer.momentum=0.5", DEFAULT_OPTIMIZER | {"momentum": 0.5}),
        ("optimizer.weight_decay=5e-4", DEFAULT_OPTIMIZER | {"weight_decay": 5e-4}),
        ("optimizer.nesterov=true", DEFAULT_OPTIMIZER | {"nesterov": True}),
        ("optimizer.param_groups=[{match: a}]", DEFAULT_OPTIMIZER | {"param_groups": [{"match": "a"}]}),
        ("optimizer.name=SGD", DEFAULT_OPTIMIZER),
        ("optimizer.name=AdamW", {"name": "AdamW", **OWN_KEYS, "lr": 1e-3}),
        ("optimizer={lr: 0.02}", DEFAULT_OPTIMIZER | {"lr": 0.02}),
        ("optimizer={}", DEFAULT_OPTIMIZER),
        ("optimizer={name: SGD, lr: 0.02}", {"name": "SGD", **OWN_KEYS, "lr": 0.02}),
    ],
)
def test_an_override_changes_one_value_of_a_default_section(
    workdir: Path, override: str, expected: dict[str, Any]
) -> None:
    """A mapping with a name, and the name of another class, replace the section instead."""
    assert load(workdir, "seed: 0", overrides=(override,)).optimizer.model_dump() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("optimizer: {weight_decay: 5.0e-4}",), DEFAULT_OPTIMIZER | {"weight_decay": 5e-4}),
        (("optimizer: {lr: 0.1}",), DEFAULT_OPTIMIZER | {"lr": 0.1}),
        (("optimizer: {}",), DEFAULT_OPTIMIZER),
        (("optimizer: {lr: 0.1}", "optimizer: {nesterov: true}"), DEFAULT_OPTIMIZER | {"lr": 0.1, "nesterov": True}),
        (("optimizer: {name: SGD, lr: 0.1}",), {"name": "SGD", **OWN_KEYS, "lr": 0.1}),
        (("optimizer: {name: AdamW}",), {"name": "AdamW", **OWN_KEYS, "lr": 1e-3}),
        (("optimizer: {lr: 0.1}", "optimizer: {name: AdamW}"), {"name": "AdamW", **OWN_KEYS, "lr": 1e-3}),
    ],
)
def test_a_section_of_a_file_that_names_no_class_changes_the_default_one(
    workdir: Path, files: tuple[str, ...], expected: dict[str, Any]
) -> None:
    assert load(workdir, *files).optimizer.model_dump() == expected


def changed(default: Any) -> Any:
    """Another value of the same type."""
    return {bool: not default, int: default + 1 if isinstance(default, int) else 0, float: 0.25}.get(type(default))


def simple_values(section: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    inner = [
        simple_values(v, f"{prefix}{k}.") if isinstance(v, dict) else [(prefix + k, v)] for k, v in section.items()
    ]
    return [pair for pairs in inner for pair in pairs]


def test_an_override_of_any_default_leaves_all_other_values(workdir: Path) -> None:
    default = dict(simple_values(load(workdir, "seed: 0").model_dump()))
    tried = 0
    for key, value in default.items():
        new = 1 if key == "data.channels" else changed(value)
        if new is None or key in ("train.epochs", "slurm.processes_per_node"):
            continue
        after = dict(simple_values(load(workdir, "seed: 0", overrides=(f"{key}={str(new).lower()}",)).model_dump()))
        assert after == default | {key: new}, key
        tried += 1
    assert tried > 20


def test_three_files_and_overrides_anywhere(workdir: Path) -> None:
    for name, text in {"a": "name: a\nseed: 1", "b": "seed: 2\ntrain: {steps: 4}", "c": "train: {epochs: 3}"}.items():
        (workdir / f"{name}.yaml").write_text(text)
    config = load_config(["data.root=x", "a.yaml", "seed=9", "b.yaml", "c.yaml"])
    assert (config.name, config.seed, config.data.root) == ("a", 9, "x")
    assert (config.train.epochs, config.train.steps) == (3, None)


@pytest.mark.parametrize(
    "files",
    [
        ["実験.yaml", "эксперимент.yaml"],
        ["größe.yaml", "grüße.yaml", "gr-e.yaml"],
        ["!!!.yaml", "???.yaml", "---.yaml"],
        ["\udcff.yaml", "\udcfe.yaml"],  # bytes of a file's name that are no UTF-8
        ["ü" * 60 + ".yaml", "ü" * 61 + ".yaml", "ü.yaml"],
    ],
)
def test_files_with_other_letters_give_runs_of_their_own(files: list[str]) -> None:
    names = {name_from(file) for file in files}
    assert len(names) == len(files)
    assert {check_run_name(name) for name in names} == names


def test_the_same_letters_give_the_same_name_however_they_are_composed() -> None:
    assert name_from("e\u0301.yaml") == name_from("\u00e9.yaml")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my run.yaml", "my-run"),
        ("_x.yaml", "x"),
        ("é.yaml", "run-4a99557e"),
        ("a+b=c.yaml", None),
        ("v1.2.yaml", "v1.2"),
    ],
)
def test_the_name_is_the_first_files(workdir: Path, file: str, name: str | None) -> None:
    (workdir / file).write_text("seed: 0")
    (workdir / "second.yaml").write_text("seed: 1")
    if name is None:
        with pytest.raises(ConfigError, match="no configuration given"):
            load_config([file])
    else:
        assert load_config([file, "second.yaml"]).name == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("=3", "got '=3', must be key=value with a dotted key, such as optimizer.lr=0.1 (command line)"),
        ("a..b=3", "got 'a..b=3', must be key=value with a dotted key, such as optimizer.lr=0.1 (command line)"),
        ("seed=", "seed: has no value: write seed=null for none (command line)"),
        (
            "seed={",
            "seed: not valid YAML: expected the node content, but found '<stream end>' while parsing a flow node",
        ),
        ("seed=!!python/name:os.system", "seed: the tag !!python/name:os.system is not allowed: write a plain value"),
        (
            "optimizer.param_groups.0.lr=1",
            "optimizer.param_groups.0.lr: one element of a list cannot be set: "
            "give the whole list, optimizer.param_groups=[...] (command line)",
        ),
        (
            "optimizer.param_groups.lr=1",
            "optimizer.param_groups: is a list in 0.yaml line 4: "
            "give the whole list, optimizer.param_groups=[...] (command line)",
        ),
        ("train={epochs: 1, steps: 2}", "train.steps: got 2 beside train.epochs 1, must be one of the two"),
    ],
)
def test_a_malformed_override_is_refused(workdir: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(workdir, BASE, overrides=(override,))
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("(command line)")


def test_both_lengths_in_one_file_is_a_mistake(workdir: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.steps: got 5 beside train.epochs 7.*\(1.yaml line 1\)"):
        load(workdir, BASE, "train: {epochs: 7, steps: 5}")


def test_a_mistake_names_the_layer_that_made_it(workdir: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(workdir, BASE, "data:\n  root: 3\noptimizer: {lr: -1}", overrides=("seed=-1",))
    assert [(m.key, m.where) for m in caught.value.mistakes] == [
        ("seed", "command line"),
        ("data.root", "1.yaml line 2"),
        ("optimizer.lr", "1.yaml line 3"),
    ]


def test_faults_of_several_files_come_at_once(workdir: Path) -> None:
    (workdir / "empty.yaml").write_text("")
    (workdir / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match=r"3 mistakes(.|\n)*empty.yaml(.|\n)*list.yaml(.|\n)*missing.yaml"):
        load_config(["empty.yaml", "list.yaml", "missing.yaml"])
