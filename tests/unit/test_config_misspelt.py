"""Did you mean: every key misspelt by one edit is refused, nearly always with the right suggestion."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainlib.config import load_config
from trainlib.config.checking.suggest import edit_distance, nearest
from trainlib.config.libraries import catalog
from trainlib.config.schema.keys import all_keys
from trainlib.errors import ConfigError

FULL: dict[str, Any] = {
    "name": "x",
    "seed": 0,
    "code": {},
    "mirror": "s3://bucket/path",
    "data": {
        "name": "cifar10",
        "root": "data",
        "val_fraction": 0.1,
        "split": "stratified",
        "test_fraction": None,
        "fold": "1/5",
        "table": None,
        "group": None,
        "labels": "one",
        "label_separator": ";",
        "balance": 0.5,
        "repeats": 2,
        "cache": "auto",
        "decode": "fast",
        "verify": "quick",
        "image_size": 32,
        "channels": 3,
        "train_image_size": 28,
        "resize": {"fit": "crop", "size": 36, "interpolation": "bicubic"},
        "shuffle": True,
        "drop_last": False,
        "normalize": {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]},
        "augment": {
            "flip": True,
            "crop_padding": 0,
            "fill": "black",
            "crop": {"scale": [0.2, 1.0], "ratio": [0.8, 1.25], "interpolation": "bilinear"},
            "vertical_flip": True,
            "policy": {"name": "randaugment", "num_ops": 3, "magnitude": 5},
            "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
            "erase": 0.25,
            "mixup": 0.2,
            "cutmix": 1.0,
        },
        "limit": None,
    },
    "model": {
        "name": "vgg16",
        "weights": None,
        "weights_keys": "shapes",
        "head": "replace",
        "freeze": "backbone",
        "unfreeze": [{"match": "features.*", "at": "2ep"}],
        "cache_features": "auto",
        "sync_batchnorm": False,
        "checkpoint_activations": False,
        "width": 0.5,
        "dropout": 0.1,
    },
    "loss": {
        "name": "CrossEntropyLoss",
        "activation": "none",
        "reduction": "mean",
        "target_threshold": None,
        "label_smoothing": 0.1,
    },
    "optimizer": {
        "name": "SGD",
        "lr": 0.1,
        "momentum": 0.9,
        "no_decay": "norm",
        "layer_decay": 0.5,
        "param_groups": [{"match": "a", "weight_decay": 0}],
    },
    "scheduler": [
        {"name": "LinearLR", "start_factor": 0.1, "interval": "step", "duration": "5ep"},
        {"name": "ReduceLROnPlateau", "metric": "val/loss", "patience": 3},
    ],
    "train": {
        "epochs": 20,
        "steps": None,
        "batch_size": 64,
        "micro_batch_size": None,
        "precision": "fp32",
        "clip_grad_norm": None,
        "average": {"decay": 0.99, "every": 1, "warmup": "timm", "scale_decay": True},
        "keep_batchnorm": True,
        "early_stopping": {"metric": "val/loss", "patience": 3, "mode": "min", "min_delta": 0.1},
        "device": "cpu",
        "reproducibility": "exact",
        "virtual_shards": 8,
        "compile": "auto",
        "cuda_graph": False,
        "on_nonfinite": "skip",
        "max_nonfinite_steps": 3,
        "hang_seconds": 60.0,
        "audit": 100,
    },
    "evaluation": {"test_time": "flip", "metrics": []},
    "checkpoint": {
        "every": "1ep",
        "keep": 3,
        "best": {"metric": "val/accuracy", "mode": "max"},
        "background": True,
        "after": {"keep": ["best", "last"], "optimizer": True},
    },
    "tracking": {
        "wandb": {"mode": "offline", "project": "p", "entity": "e", "group": "g", "artifacts": False},
        "health": {"every": "100st"},
        "tensorboard": True,
        "trackers": ["mlflow"],
        "progress": True,
        "log_every": 50,
    },
    "slurm": {
        "nodes": 1,
        "gpus_per_node": 1,
        "processes_per_node": None,
        "time": "01:00:00",
        "partition": None,
        "cpus_per_gpu": 8,
        "mem": "64G",
        "account": "a",
        "qos": "high",
        "mail": "me",
        "setup": ["module load cuda"],
        "signal_seconds": 120,
        "max_failures": 3,
    },
}


def edits(word: str, offset: int) -> Iterator[str]:
    """An insertion and a replacement, or a deletion and a swap, at a place in the word that moves on with `offset`."""
    i = offset // 2 % len(word)
    if offset % 2:
        yield word[:i] + "q" + word[i:]
        yield word[:i] + "q" + word[i + 1 :]
    else:
        yield word[:i] + word[i + 1 :]
        j = offset // 2 % max(1, len(word) - 1)
        yield word[:j] + word[j : j + 2][::-1] + word[j + 2 :]


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key in nested mappings and lists."""
    for part, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        if isinstance(part, str):
            yield (*path, part)
        yield from places(inner, (*path, part))


def renamed(value: Any, path: tuple[str | int, ...], name: str) -> Any:
    """A copy with the key at `path` called `name`."""
    if isinstance(value, list):
        return [renamed(inner, path[1:], name) if i == path[0] else inner for i, inner in enumerate(value)]
    if len(path) == 1:
        return {name if key == path[0] else key: inner for key, inner in value.items()}
    return {key: renamed(inner, path[1:], name) if key == path[0] else inner for key, inner in value.items()}


def suggestion(values: Any, key: str) -> str:
    """What is said about this key of a configuration that must be refused; no YAML is read, which takes the longest."""
    with pytest.raises(ConfigError) as caught:
        load_config([values])
    return next((m.rule for m in caught.value.mistakes if m.key == key), "")


def score(values: Any, keys: list[tuple[str | int, ...]]) -> tuple[int, list[str]]:
    """How many misspellings were tried, and those without the right suggestion."""
    tried, wrong = 0, []
    for offset, path in enumerate(keys):
        *section, name = map(str, path)
        for edit in set(edits(name, offset)) - {name, ""}:
            tried += 1
            key = ".".join([*section, edit])
            rule = suggestion(renamed(values, path, edit), key)
            if f"did you mean {'.'.join([*section, name])}?" not in rule:
                wrong.append(f"{key}: {rule}")
    return tried, wrong


def test_the_full_configuration_holds_every_key(workdir: Path) -> None:
    (workdir / "x.yaml").write_text(json.dumps({**FULL, "train": {**FULL["train"], "steps": None}}))
    assert load_config(["x.yaml"]).name == "x"
    present = {".".join(part for part in path if isinstance(part, str)) for path in places(FULL)}
    of_other_policies = {f"data.augment.policy.{key}" for key in ("policy", "severity", "mixture_width", "alpha")}
    assert set(all_keys()) - of_other_policies - {"data.augment.custom"} <= present


def test_every_key_of_the_schema() -> None:
    tried, wrong = score(FULL, list(places(FULL)))
    assert tried > 200
    assert len(wrong) <= 0.05 * tried, "\n".join(wrong)


def classes() -> Iterator[tuple[catalog.Family, str]]:
    families: tuple[catalog.Family, ...] = ("loss", "optimizer", "scheduler")
    yield from ((family, name) for family in families for name in catalog.names(family))
    yield from (("model", name) for name in ("vgg16", "resnet18", "mobilenet_v2", "maxvit_t", "vit_b_16"))


def test_every_argument_of_the_named_classes() -> None:
    tried, wrong = 0, []
    for family, name in classes():
        taken = catalog.arguments(family, name)
        section = {"name": name, **dict.fromkeys(taken, None)}  # values do not matter: the keys are refused
        count, missed = score({family: section}, [(family, argument) for argument in taken])
        tried += count
        wrong += missed
    assert tried > 250
    assert len(wrong) <= 0.05 * tried, "\n".join(wrong)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("a", "", 1),
        ("lr", "rl", 1),
        ("ab", "ba", 1),
        ("kitten", "sitting", 3),
        ("abc", "abc", 0),
        ("ca", "abc", 3),
    ],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("word", "choices", "meant"),
    [
        ("Momentum", ["momentum"], "momentum"),
        ("x", [], None),
        ("quux", ["momentum"], None),
        ("sgd", ["SGD", "ASGD"], "SGD"),
    ],
)
def test_nearest(word: str, choices: list[str], meant: str | None) -> None:
    assert nearest(word, choices) == meant
