"""Wrong values: each is one mistake that says what was got, the rule and the fix, and all are told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainlib.config import Config, load_config
from trainlib.errors import ConfigError


def load(workdir: Path, text: str) -> Config:
    (workdir / "x.yaml").write_text(text)
    return load_config(["x.yaml"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: -1", "seed: got -1, must be >= 0"),
        ("seed: 1.5", "seed: got 1.5, must be a whole number"),
        ("seed: .inf", "seed: got .inf, must be a whole number"),
        ("seed: true", "seed: got true, must be a whole number"),
        ("name: 3", "name: got 3, must be text: put it in quotes"),
        ("data: {val_fraction: 1}", "data.val_fraction: got 1, must be < 1"),
        ("data: {val_fraction: .nan}", "data.val_fraction: got .nan, must be a finite number"),
        ("data: {shuffle: yes}", 'data.shuffle: got "yes", must be true or false'),
        ("data: {limit: all}", 'data.limit: got "all", must be a whole number (or null)'),
        (
            "data: {name: cifar100}",
            'data.name: got "cifar100", must be one of cifar10, image_folder, table, archive, hf, synthetic; did you '
            "mean cifar10?",
        ),
        (
            "data: {normalize: atuo}",
            'data.normalize: got "atuo", must be auto, none or {mean: [r, g, b], std: [r, g, b]}; did you mean auto?',
        ),
        ("data: {normalize: [1]}", "data.normalize: got [1], must be auto, none or {mean: [r, g, b], std: [r, g, b]}"),
        ("data: {normalize: {mean: [0, 0, 0]}}", "data.normalize.std: is missing: must be given here"),
        (
            "data: {normalize: {mean: [0, 0], std: [1, 1, 1]}}",
            "data.normalize.mean: got [0.0, 0.0], must be 3 numbers, of red, green and blue",
        ),
        (
            "data: {normalize: {mean: [0, 0, 0], std: [1, 1, 0]}}",
            "data.normalize.std.2: got 0, must be > 0",
        ),
        (
            "data: {normalize: {mean: [123.7, 116.3, 103.5], std: [0.2, 0.2, 0.2]}}",
            "data.normalize.mean: got [123.7, 116.3, 103.5], must be on a scale from 0 to 1, which images have here: "
            "divide by 255",
        ),
        ("data: {augment: {flip: both}}", 'data.augment.flip: got "both", must be true, false or alternating'),
        ("data: {augment: {flip: 1}}", "data.augment.flip: got 1, must be true, false or alternating"),
        ("data: {augment: null}", "data.augment: got null, must be a section with keys of its own, {key: value}"),
        (
            "model: {freeze: feature}",
            'model.freeze: got "feature", must be features, backbone, null, or a list of patterns of parameter names',
        ),
        (
            "model: {name: resnet19}",
            'model.name: got "resnet19", must be cifar10_cnn, cifar10_fast, vgg16, a classification model of '
            "torchvision (torchvision.models.list_models()), timm/NAME or hf-hub:ORGANISATION/NAME; did you mean "
            "resnet18?",
        ),
        ("model: {name: vgg16, width: 0}", "model.width: got 0, must be > 0"),
        ("model: {name: vgg16, dropout: 1}", "model.dropout: got 1, must be >= 0 and < 1"),
        (
            "model: {weights: IMAGENET1K_V1}",
            'model.weights: got "IMAGENET1K_V1", must be the path of a file (.pt, .pth, .safetensors): '
            "cifar10_cnn has no named weights",
        ),
        (
            "model: {name: vgg11, weights: IMAGENET1K_V2}",
            'model.weights: got "IMAGENET1K_V2", must be one of pretrained, IMAGENET1K_V1, DEFAULT, '
            "the path of a file (.pt, .pth, .safetensors); did you mean IMAGENET1K_V1?",
        ),
        (
            "loss: {name: NLLLos}",
            'loss.name: got "NLLLos", must be one of CrossEntropyLoss, NLLLoss, BCELoss, BCEWithLogitsLoss, L1Loss, '
            "SmoothL1Loss, HuberLoss, MSELoss, MultiMarginLoss; did you mean NLLLoss?",
        ),
        ("loss: {label_smoothing: 1.5}", "loss.label_smoothing: got 1.5, must be >= 0 and <= 1"),
        ("loss: {weight: heavy}", 'loss.weight: got "heavy", must be a list of numbers or null or balanced'),
        ("loss: {weight: [1, -1]}", "loss.weight: got [1, -1], must be >= 0"),
        (
            "loss: {weight: [0, 0.0]}",
            "loss.weight: got [0, 0.0], must be > 0 for at least one class: else nothing can be learned",
        ),
        (
            "loss: {weight: [1e-50, 0]}",
            "loss.weight: got [1e-50, 0], must be > 0 for at least one class: else nothing can be learned",
        ),
        ("loss: {weight: [1, 1e39]}", "loss.weight: got [1, 1e+39], must be at most 1e+30: larger ones overflow"),
        ("loss: {weight: [1, .nan]}", "loss.weight: got [1, NaN], must be a list of numbers or null or balanced"),
        ("loss: {weight: [1, .inf]}", "loss.weight: got [1, Infinity], must be a list of numbers or null or balanced"),
        (
            "loss: {name: BCEWithLogitsLoss, pos_weight: [0, 0]}",
            "loss.pos_weight: got [0, 0], must be > 0 for at least one class: else nothing can be learned",
        ),
        (
            "loss: {label_smoothing: 1}",
            "loss.label_smoothing: got 1, must be < 1: else all classes have the same target",
        ),
        ("loss: {name: MultiMarginLoss, p: 3}", "loss.p: got 3, must be 1 or 2"),
        (
            "loss: {name: MSELoss, label_smoothing: 0.1}",
            "loss.label_smoothing: unknown key; MSELoss takes name, activation, reduction",
        ),
        (
            "loss: {name: BCELoss, activation: none}",
            "loss.activation: got none, must be sigmoid or softmax: BCELoss takes probabilities "
            "(BCEWithLogitsLoss does not)",
        ),
        ("optimizer: SGD", 'optimizer: got "SGD", must be a section with a name, {name: ..., ...}'),
        ("optimizer: {lr: -0.1}", "optimizer.lr: got -0.1, must be > 0"),
        ("optimizer: {lr: .inf}", "optimizer.lr: got .inf, must be a number"),
        ("optimizer: {lr: true}", "optimizer.lr: got true, must be a number"),
        ("optimizer: {momentum: 1}", "optimizer.momentum: got 1, must be >= 0 and < 1"),
        ("optimizer: {weight_decay: -1}", "optimizer.weight_decay: got -1, must be >= 0"),
        ("optimizer: {name: Adam, betas: [0.9]}", "optimizer.betas: got [0.9], must be a list [a number, a number]"),
        ("optimizer: {name: Adam, betas: [0.9, 1]}", "optimizer.betas: got [0.9, 1], must be >= 0 and < 1"),
        ("optimizer: {nesterov: 1}", "optimizer.nesterov: got 1, must be true or false"),
        (
            "optimizer: {name: LBFGS}",
            "optimizer.name: LBFGS needs to evaluate the loss several times a step: "
            "choose another, such as SGD or AdamW",
        ),
        (
            "optimizer: {betas: [0, 0]}",
            "optimizer.betas: unknown key; SGD takes lr, momentum, dampening, weight_decay, nesterov, maximize, "
            "foreach, fused, name, no_decay, layer_decay, param_groups",
        ),
        ("optimizer: {param_groups: [{lr: 1}]}", "optimizer.param_groups.0.match: is missing: must be given here"),
        ("optimizer: {param_groups: [{match: a, lr: 0}]}", "optimizer.param_groups.0.lr: got 0, must be > 0"),
        ("optimizer: {param_groups: {match: a}}", 'optimizer.param_groups: got {"match": "a"}, must be a list'),
        (
            "scheduler: StepLR",
            'scheduler: got "StepLR", must be a section with a name, {name: StepLR, step_size: 5}, '
            "a list of them, or null",
        ),
        ("scheduler: []", "scheduler: got an empty list, must have at least one scheduler: write null for none"),
        ("scheduler: {gamma: 3}", "scheduler.name: is missing: must be given here"),
        ("scheduler: {name: StepLR}", "scheduler.step_size: is missing: StepLR needs it, a whole number"),
        ("scheduler: {name: StepLR, step_size: 0}", "scheduler.step_size: got 0, must be >= 1"),
        ("scheduler: {name: StepLR, step_size: 1.5}", "scheduler.step_size: got 1.5, must be a whole number"),
        (
            "scheduler: {name: LambdaLR}",
            "scheduler.name: LambdaLR takes a Python function: choose another, or write a list of schedulers",
        ),
        (
            "scheduler: {name: StepLR, step_size: 1, interval: steps}",
            'scheduler.interval: got "steps", must be one of epoch, step; did you mean step?',
        ),
        (
            "scheduler: {name: StepLR, step_size: 1, duration: 5ep}",
            "scheduler.duration: got 5ep, but a single scheduler lasts the whole run: leave it out",
        ),
        (
            "scheduler: {name: StepLR, step_size: 1, metric: val/loss}",
            "scheduler.metric: got val/loss, but only ReduceLROnPlateau reads a metric: leave it out",
        ),
        (
            "scheduler: {name: ReduceLROnPlateau, interval: step}",
            "scheduler.interval: got step, must be epoch: a metric is known once an epoch",
        ),
        (
            "scheduler: {name: ReduceLROnPlateau, metric: val/accuracy, mode: min}",
            "scheduler.mode: got min, must be max for val/accuracy: leave it out",
        ),
        (
            "scheduler: [{name: LinearLR}, {name: CosineAnnealingLR}]",
            "scheduler.0.duration: is missing: every scheduler of a list but the last needs one, like 5ep or 500st",
        ),
        (
            "scheduler: [{name: LinearLR, duration: 5}, {name: CosineAnnealingLR}]",
            "scheduler.0.duration: got 5, must be a duration: a whole number of epochs or steps, like 20ep or 500st",
        ),
        (
            "scheduler: [{name: ReduceLROnPlateau, duration: 5ep}, {name: CosineAnnealingLR}]",
            "scheduler.0.name: ReduceLROnPlateau must be the last of a list: nothing says when it ends",
        ),
        (
            "optimizer: {name: Adagrad}\nscheduler: {name: OneCycleLR, max_lr: 1}",
            "scheduler.cycle_momentum: must be false: Adagrad has no momentum for OneCycleLR to cycle",
        ),
        ("train: {batch_size: 0}", "train.batch_size: got 0, must be >= 1"),
        ("train: {epochs: 1, steps: 1}", "train.steps: got 1 beside train.epochs 1, must be one of the two"),
        (
            "train: {batch_size: 8, micro_batch_size: 9}",
            "train.micro_batch_size: got 9, must be <= train.batch_size, which is 8",
        ),
        (
            "train: {precision: fp61}",
            'train.precision: got "fp61", must be one of fp32, bf16, fp16; did you mean fp16?',
        ),
        ("train: {precision: false}", "train.precision: got false, must be one of fp32, bf16, fp16"),
        (
            "train: {reproducibility: elastic, batch_size: 4}",
            "train.virtual_shards: got 8, must be <= train.batch_size, which is 4",
        ),
        (
            "data: {val_fraction: 0}\ntrain: {early_stopping: {metric: val/accuracy}}",
            "train.early_stopping.metric: got val/accuracy, but data.val_fraction is 0: "
            "set data.val_fraction, or use train/accuracy",
        ),
        (
            "data: {val_fraction: 0}\nscheduler: {name: ReduceLROnPlateau, metric: val/loss}",
            "scheduler.metric: got val/loss, but data.val_fraction is 0: set data.val_fraction, or use train/loss",
        ),
        (
            "checkpoint: {best: {metric: val/loss, mode: max}}",
            "checkpoint.best.mode: got max, must be min for val/loss: leave it out",
        ),
        ("checkpoint: {every: 0ep}", 'checkpoint.every: got "0ep", must be a duration: a whole number of epochs'),
        ("checkpoint: {keep: 1}", "checkpoint.keep: got 1, must be >= 2"),
        ("tracking:", "tracking: got null, must be a section with keys of its own, {key: value}"),
        ("slurm: {nodes: 0}", "slurm.nodes: got 0, must be >= 1"),
        ("slurm: {nodes: 4-2}", 'slurm.nodes: got "4-2", must go from fewer to more, like 1-4, or be one number'),
        ("slurm: {nodes: 2-2}", 'slurm.nodes: got "2-2", must go from fewer to more, like 1-4, or be one number'),
        (
            "slurm: {nodes: all}",
            'slurm.nodes: got "all", must be a whole number, or a range like 1-4, of which the queue may give any',
        ),
        (
            "slurm: {nodes: true}",
            "slurm.nodes: got true, must be a whole number, or a range like 1-4, of which the queue may give any",
        ),
        (
            "slurm: {nodes: 1-4}",
            "slurm.nodes: got 1-4, must be one number: train.reproducibility is exact, and only elastic gives the same "
            "bits with any number of nodes",
        ),
        (
            "train: {reproducibility: elastic}\nslurm: {nodes: 1-3, processes_per_node: 3}",
            "slurm.nodes: got 1-3, with 3 processes on each makes 9, must be at most 8, which is train.virtual_shards: "
            "ask for fewer, or for more shards, which are part of the result",
        ),
        ("slurm: {time: 5h}", 'slurm.time: got "5h", must be a time limit as SLURM writes it: 90 (minutes), 1:30:00'),
        ("slurm: {time: 0}", "slurm.time: got 0, must be a time limit as SLURM writes it: 90 (minutes), 1:30:00"),
        ("slurm: {signal_seconds: 65536}", "slurm.signal_seconds: got 65536, must be <= 65535"),
        ("slurm: {partition: a b}", 'slurm.partition: got "a b", must be the name of a partition, or several as a,b'),
        ("name: a/b", "name: got \"a/b\", must be letters, digits, '.', '_' or '-', at most 100 of them"),
        ("lr: 0.1", "lr: unknown key here; it belongs to section optimizer: did you mean optimizer.lr?"),
        ("train: {seed: 1}", "train.seed: unknown key here; it belongs to the top level: did you mean seed?"),
        (
            "optimizer.lr: 1",
            "got the key optimizer.lr: a dotted key is for the command line, here it must be nested",
        ),
        ("quux: 1", "quux: unknown key; must be one of name, seed, code, mirror, data, model, loss, optimizer, "),
    ],
)
def test_a_wrong_value_is_one_mistake(workdir: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(workdir, text)
    assert len(caught.value.mistakes) == 1, str(caught.value)
    assert str(caught.value).startswith(message)
    assert " (x.yaml line " in str(caught.value)


def test_all_mistakes_come_at_once_in_the_order_of_the_sections(workdir: Path) -> None:
    text = """seed: -1
tracking: {log_every: 0}
optimizer: {lr: -1, momentun: 0.9, name: SGD}
data: {val_fraction: 0, root: 3}
train: {micro_batch_size: 65, early_stopping: {metric: val/loss, mode: max}}
checkpoint: {keep: 1}
"""
    with pytest.raises(ConfigError) as caught:
        load(workdir, text)
    assert [(m.key, m.where) for m in caught.value.mistakes] == [
        ("seed", "x.yaml line 1"),
        ("data.root", "x.yaml line 4"),
        ("optimizer.lr", "x.yaml line 3"),
        ("optimizer.momentun", "x.yaml line 3"),
        ("train.micro_batch_size", "x.yaml line 5"),
        ("train.early_stopping.mode", "x.yaml line 5"),
        ("checkpoint.keep", "x.yaml line 6"),
        ("tracking.log_every", "x.yaml line 2"),
    ]
    assert str(caught.value).startswith(
        "8 mistakes in the configuration:\n  seed: got -1, must be >= 0 (x.yaml line 1)\n"
    )


def test_a_missing_file_is_told_with_the_shipped_names(workdir: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"quickstrat.yaml: no such file; did you mean quickstart\? \(shipped .*cifar10_cnn"
    ):
        load_config(["quickstrat.yaml"])
    with pytest.raises(ConfigError, match=r"zzz: no such file \(shipped configurations: "):
        load_config(["zzz"])
    with pytest.raises(ConfigError, match=r"\.: is a folder, must be a YAML file"):
        load_config(["."])


def test_no_file_at_all_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="no configuration given: must be the path of a file or one of"):
        load_config(["optimizer.lr=0.1"])
