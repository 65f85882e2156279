"""The catalog, read from source text, against the libraries themselves."""

from __future__ import annotations

import ast
import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from trainlib.config.libraries import catalog
from trainlib.config.libraries.kinds import Kind, kind_of
from trainlib.models.optimizers import build

HIDDEN = {
    "loss": {"size_average", "reduce", "reduction"},
    "optimizer": {"params", "differentiable", "capturable"},
    "scheduler": {"optimizer", "last_epoch", "verbose", "scale_fn"},
}
HOMES: dict[str, Any] = {"loss": torch.nn, "optimizer": torch.optim, "scheduler": torch.optim.lr_scheduler}
CLASSES = [(family, name) for family in HOMES for name in catalog.names(family)]


def subclasses(module: Any, base: type) -> set[str]:
    found = {name for name in dir(module) if inspect.isclass(cls := getattr(module, name)) and issubclass(cls, base)}
    return {name for name in found if not name.startswith("_")} - {base.__name__}


def class_of(family: str, name: str) -> Any:
    """What is built where a configuration has this name: our own class, or torch's of that name."""
    own = build.OWN if family == "optimizer" else {}
    return own[name] if name in own else getattr(HOMES[family], name)


def plain(value: Any) -> Any:
    """A default as YAML would hold it."""
    return [plain(part) for part in value] if isinstance(value, tuple | list) else value


def test_every_optimizer_is_listed_or_refused_with_a_reason() -> None:
    torchs = set(catalog.names("optimizer")) - set(catalog.OWN_OPTIMIZERS)
    assert torchs | set(catalog.REFUSED["optimizer"]) == subclasses(torch.optim, torch.optim.Optimizer)
    assert set(catalog.REFUSED["optimizer"]) == {"LBFGS", "SparseAdam"}


def test_every_scheduler_is_listed_or_refused_with_a_reason() -> None:
    assert set(catalog.names("scheduler")) | set(catalog.REFUSED["scheduler"]) == subclasses(
        torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler
    )
    assert not set(catalog.names("scheduler")) & set(catalog.REFUSED["scheduler"])


def test_every_classification_model_is_listed() -> None:
    listed = set(torchvision.models.list_models(module=torchvision.models))
    assert set(catalog.names("model")) == listed | {"cifar10_cnn", "cifar10_fast"}


@pytest.mark.parametrize(("family", "name"), CLASSES)
def test_arguments_are_those_of_the_constructor(family: catalog.Family, name: str) -> None:
    parameters = dict(inspect.signature(class_of(family, name)).parameters)
    taken = catalog.arguments(family, name)
    assert set(taken) == set(parameters) - HIDDEN[family]
    for key, argument in taken.items():
        default = parameters[key].default
        if name == "CosineAnnealingLR" and key == "T_max":
            assert not argument.required  # the length of the schedule
        else:
            assert argument.required == (default is inspect.Parameter.empty)
        if argument.default is not None:
            assert argument.default == default
        if not argument.required and default is not inspect.Parameter.empty:
            assert argument.kind.accepts(plain(default)), f"{key} must be {argument.kind.words}"


def test_every_optimizer_has_a_default_learning_rate() -> None:
    for name in catalog.names("optimizer"):
        default = catalog.arguments("optimizer", name)["lr"].default
        assert default == inspect.signature(class_of("optimizer", name)).parameters["lr"].default
        assert default > 0


def test_weights_are_those_of_the_enum() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    assert len(names) > 70
    expected = {name: {"pretrained", *torchvision.models.get_model_weights(name).__members__} for name in names}
    assert {name: set(catalog.weights(name)) for name in names} == expected


def test_own_optimizers_take_no_name_of_torchs() -> None:
    assert set(catalog.OWN_OPTIMIZERS) == set(build.OWN)
    assert not set(catalog.OWN_OPTIMIZERS) & set(dir(torch.optim))
    for name, cls in build.OWN.items():
        defaults = {key: argument.default for key, argument in catalog.arguments("optimizer", name).items()}
        make: Any = cls  # each has defaults for all but the parameters
        assert defaults == make([torch.zeros(1)]).defaults


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_an_argument_that_published_weights_alone_set_may_be_given(name: str) -> None:
    assert catalog.arguments("model", name)["transform_input"].kind.accepts(True)
    with torch.device("meta"):
        assert torchvision.models.get_model(name, transform_input=True, init_weights=False).transform_input


def test_own_models() -> None:
    assert catalog.weights("cifar10_cnn") == ()
    assert dict(catalog.arguments("model", "cifar10_cnn")) == {}
    assert {key: a.default for key, a in catalog.arguments("model", "vgg16").items()} == {"width": 1.0, "dropout": 0.5}


ONE_OF_EACH_FILE = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "resnet18",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("weights.pt", "weights.pt"),
        ("weights.safetensors", "weights.safetensors"),
        ("./weights", "weights"),
        ("../w/weights.bin", "../w/weights.bin"),
        ("/w/weights", "/w/weights"),
        ("~/weights", "/home/me/weights"),
        ("~/weights.pth", "/home/me/weights.pth"),
        ("~nobody-of-this-name/w.pt", "~nobody-of-this-name/w.pt"),
        ("weights", None),
        ("IMAGENET1K_V1", None),
        ("DEFAULT", None),
    ],
)
def test_a_weights_file_is_told_by_its_form(
    text: str, path: str | None, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (workdir / "weights").touch()  # a file of that name makes no difference
    assert catalog.weights_file(text) == (None if path is None else Path(path))


@pytest.mark.parametrize("name", ONE_OF_EACH_FILE)
def test_the_builder_takes_every_listed_argument(name: str) -> None:
    values = {"dropout": 0.25, "stochastic_depth_prob": 0.1}
    given = {
        key: argument.default if argument.default is not None else values.get(key)
        for key, argument in catalog.arguments("model", name).items()
    }
    device = "cpu" if name.startswith("regnet") else "meta"  # RegNet computes its widths with tensors
    with torch.device(device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are not initialised on the meta device
        extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        torchvision.models.get_model(name, **given, **extra)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("resnext50_32x4d", "groups", 2),
        ("wide_resnet50_2", "width_per_group", 32),
        ("densenet121", "growth_rate", 16),
        ("squeezenet1_0", "version", "1_1"),
        ("swin_t", "stochastic_depth_prob", 0.1),
        ("mnasnet0_5", "alpha", 1.0),
        ("efficientnet_b0", "last_channel", 64),
    ],
)
def test_what_a_builder_sets_itself_is_not_listed(name: str, argument: str, value: object) -> None:
    assert argument not in catalog.arguments("model", name)
    with torch.device("meta"), pytest.raises((TypeError, ValueError)):
        torchvision.models.get_model(name, **{argument: value})


@pytest.mark.parametrize(
    ("annotation", "words", "good", "bad"),
    [
        ("float", "a number", [1, 0.5, -2], [True, "1", None, [1], float("inf"), float("nan"), 10**400]),
        ("int", "a whole number", [1, -3], [1.0, True, "1"]),
        ("bool", "true or false", [True, False], [0, "yes"]),
        ("str", "text", ["a"], [1, None]),
        ("bool | None", "true or false or null", [True, None], [0]),
        ("Optional[int]", "a whole number or null", [3, None], ["x"]),
        ("Union[float, list[float]]", "a number or a list of numbers", [1, [1, 2.5]], ["a", ["a"]]),
        ("tuple[float, float]", "a list [a number, a number]", [[1, 2]], [[1], [1, 2, 3], 1, ["a", 1]]),
        ("tuple[float | None, float]", "a list [a number or null, a number]", [[None, 1]], [[1, None]]),
        ("tuple[int, ...]", "a list of whole numbers", [[], [1, 2, 3]], [[1.5]]),
        ("Iterable[int]", "a list of whole numbers", [[1]], [1]),
        ("Literal['min', 'max']", "one of min, max", ["min"], ["mean", 3, []]),
        ("float | Tensor", "a number", [1], [[1]]),
        ("'float'", "a number", [1], ["1"]),
        ("LearningRate", "anything", [1, "x", None], []),
    ],
)
def test_a_kind_follows_from_the_annotation(annotation: str, words: str, good: list[Any], bad: list[Any]) -> None:
    kind = kind_of(ast.parse(annotation, mode="eval").body)
    assert isinstance(kind, Kind)
    assert kind.words == words
    assert all(kind.accepts(value) for value in good)
    assert not any(kind.accepts(value) for value in bad)


@pytest.mark.parametrize(
    "annotation",
    ["Callable[[int], float]", "Optional[Callable[..., nn.Module]]", "nn.Module", "Tensor | None", "type[A]"],
)
def test_what_yaml_cannot_hold_has_no_kind(annotation: str) -> None:
    assert kind_of(ast.parse(annotation, mode="eval").body) is None
