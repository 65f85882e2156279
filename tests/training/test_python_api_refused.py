"""`trainlib.fit` refuses what cannot be exact, and tells mistakes in the words of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_parts import Net, fit, squared
from torch import Tensor, nn

import trainlib
from trainlib.config import load_config
from trainlib.errors import ConfigError, UserError
from trainlib.models.own_parts.custom_parts import build_custom, check_custom_model


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return squared(logits, labels).sum()


def no_head(num_classes: int) -> nn.Module:
    return nn.Flatten()


class Overlapping(Net):
    """The bias is a part of the weights' memory."""

    def __init__(self, num_classes: int):
        super().__init__(num_classes)
        self.head.bias.data = self.head.weight.data[:, 0]


class Repeating(Net):
    """A number of each image, which lies in memory once for all of them."""

    def __init__(self, num_classes: int):
        super().__init__(num_classes)
        self.register_buffer("ones", torch.ones(1).expand(4))


class Stateful(Net):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}


class Twofold(Net):
    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images)
        return logits if self.training else (logits.softmax(1), logits)


class Detached(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


def lazy(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a sum": ({"loss": summed}, "loss: gives .* for six samples and .* on average .* return the loss of each sample"),
    "a sum of all": ({"loss": lambda logits, labels: logits.sum()}, "loss: gives"),
    "class weights": ({"loss": nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))}, "loss: gives"),
    "dense targets": ({"loss": nn.MSELoss()}, "loss: "),
    "no logits": (
        {"model": no_head},
        r"Flatten gives \[2, 768\] for 2 images and 3 classes, must give logits \[2, 3\]",
    ),
    "another size": ({"model": nn.Sequential(nn.Flatten(), nn.Linear(5, 3))}, "cannot take images .2, 3, 16, 16.: "),
    "no module": ({"model": lambda num_classes: None}, "model: got a NoneType, must be a torch.nn.Module"),
    "shared memory": ({"model": Overlapping}, "model: head.weight and head.bias are parts of the same memory"),
    "repeated values": ({"model": Repeating}, r"model: ones repeats its values in memory .expand., .* clone"),
    "no tensor": ({"model": Stateful}, "model: its state_dict has a dict as _extra_state, must be a tensor"),
    "other in evaluation": ({"model": Twofold}, "model: Twofold gives tuple in eval mode for 2 images"),
    "detached": ({"model": Detached}, "model: Detached gives logits without a gradient"),
    "lazy": ({"model": lazy}, "model: 1.weight has no shape yet, .* call the module once, with zeros"),
    "frozen": ({"model": Net(3).requires_grad_(False)}, "the model has no parameter that can be trained"),
}


LOST: dict[str, tuple[Any, str]] = {
    "model.weights": ("net.safetensors", "resnet18"),
    "model.freeze": ("backbone", "resnet18"),
    "loss.weight": ([1.0, 2.0], "CrossEntropyLoss"),
    "loss.pos_weight": ([1.0, 2.0], "BCEWithLogitsLoss"),
    "loss.ignore_index": (1, "NLLLoss"),
    "data.table": ("rows.csv", "table"),
    "data.group": ("folder", "image_folder"),
    "data.test_fraction": (0.5, "image_folder"),
}


@pytest.mark.parametrize("key", LOST)
@pytest.mark.parametrize("where", ["file", "file with a name", "override"])
def test_values_that_would_change_what_is_learned_are_refused_with_a_given_part(key: str, where: str) -> None:
    value, name = LOST[key]
    section, _, option = key.partition(".")
    file = {section: {option: value}} if where == "file" else {section: {"name": name, option: value}}
    arguments: list[Any] = [{"name": "x", **file}] if where != "override" else [{"name": "x"}, f"{key}={value}"]
    custom = {section: "custom:Own"}
    with pytest.raises(ConfigError, match=rf"{key}: got .*, must be null for a .* that is given in Python: \w+"):
        load_config(arguments, custom=custom)
    assert load_config([*arguments, f"{key}=null"], custom=custom)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"loss": {"label_smoothing": 0.1}}, "as a loss is given in Python: loss.label_smoothing 0.1"),
        ({"loss": {"reduction": "sum"}}, 'as a loss is given in Python: loss.reduction "sum"'),
        ({"model": {"name": "vgg16", "width": 0.25}}, "as a model is given in Python: model.width 0.25"),
        ({"model": {"name": "resnet18", "head": "append"}}, 'as a model is given in Python: model.head "append"'),
        ({"model": {"name": "resnet18", "head": "replace"}, "loss": {"reduction": "mean"}}, None),
        ({"loss": {"name": "custom:Own", "activation": "none"}}, None),
    ],
)
def test_other_values_of_a_section_that_a_part_replaces_are_told(
    section: dict[str, Any], told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    load_config([{"name": "x", **section}], custom={"model": "custom:Own", "loss": "custom:Own"})
    assert caplog.messages == ([f"not used, {told}"] if told else [])


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exact_is_refused_before_training(case: str, workdir: Path) -> None:
    parts, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        fit(**parts)
    assert not (workdir / "runs/own/metrics.jsonl").exists()


def test_one_image_and_batchnorm_is_refused(workdir: Path) -> None:
    norm = nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.BatchNorm1d(3))
    with pytest.raises(UserError, match="cannot learn from 1 image"):
        fit("data.limit=17", model=norm)


def test_the_check_leaves_the_model_as_it_was(workdir: Path) -> None:
    """A forward pass of black images must not reach BatchNorm's statistics: those of a plain loop's first step."""
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768), nn.Linear(768, 3))
    classifier = build_custom(norm, 3)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    check_custom_model(classifier, 16, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())


def test_configuration_mistakes_are_told_in_the_same_words(workdir: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.lrr: unknown key; did you mean optimizer.lr\?"):
        trainlib.fit("quickstart", "optimizer.lrr=3")
    with pytest.raises(ConfigError, match="must hold plain values, as a YAML file does"):
        trainlib.fit({"name": "x", "seed": Net})
    with pytest.raises(ConfigError, match="the configuration: got a list, must be a file, a name, key=value, or a map"):
        trainlib.fit(["quickstart"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name: is missing"):
        trainlib.fit({"seed": 1})
    assert load_config([{"name": "x", "optimizer": {"name": "AdamW", "lr": np.float64(0.1), "betas": (0.9, 0.99)}}])
    given = {"data": {"root": Path("a/b")}, "optimizer": {"lr": np.float32(0.5)}, "train": {"epochs": np.int64(3)}}
    config = load_config([{"name": "x", **given}])
    assert (config.data.root, config.optimizer.model_dump()["lr"], config.train.epochs) == ("a/b", 0.5, 3)
    assert not list(workdir.iterdir())


WRONG_TYPES: dict[str, tuple[object, str]] = {
    "model": (
        "resnet18",
        "got 'resnet18', must be a function, or another object to call; a name belongs into the conf",
    ),
    "loss": ("MSELoss", "got 'MSELoss', must be a function"),
    "optimizer": (torch.optim.SGD([torch.zeros(1)], lr=0.1), "got a SGD, must be a function"),
    "transform": (3, "got 3, must be a function"),
    "dataset": ("photos", "got 'photos', must be what trainlib.image_dataset returns; a folder of pictures belongs"),
    "hooks": ([trainlib.Hook], "got a list, must be a list of objects of trainlib.Hook"),
    "metrics": (squared, "got a function, must be a list of functions"),
    "resume": (3, "got 3, must be the name of a checkpoint"),
    "fresh": (True, "fresh and resume: one starts over, the other goes on"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_arguments_of_another_type_are_refused_before_anything_is_made(name: str, workdir: Path) -> None:
    given, message = WRONG_TYPES[name]
    with pytest.raises(UserError, match=message):
        fit(**{"resume": "", name: given} if name == "fresh" else {name: given})
    assert not list(workdir.iterdir())


def test_a_second_fit_in_one_process_is_refused(workdir: Path) -> None:
    """Both would draw from torch's generators. The first, which asks for the second, is not disturbed."""
    refused = list[str]()

    class Second(trainlib.Hook):
        def on_start(self, trainer: object) -> None:
            with pytest.raises(UserError, match="another fit trains in this process") as caught:
                fit({"name": "second"})
            refused.append(str(caught.value))

    run = fit("train.epochs=1", hooks=[Second()])
    assert len(refused) == 1
    assert run.path.name == "own"
    assert not (workdir / "runs/second").exists()


def test_the_public_names() -> None:
    """That they import no torch before they are used: tests/unit/test_public_names.py."""
    assert [getattr(trainlib, name).__name__ for name in trainlib.__all__] == trainlib.__all__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        trainlib.trian  # noqa: B018
