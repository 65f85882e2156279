"""The optimizer: torch's own class, over the right parameters in the right groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from trainlib.config import OptimizerConfig
from trainlib.errors import UserError
from trainlib.models.optimizers.build import build_optimizer


def network() -> nn.Module:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    return nn.ModuleDict({"features": features, "classifier": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))})


def build(module: nn.Module, **section: Any) -> torch.optim.Optimizer:
    return build_optimizer(OptimizerConfig.model_validate(section), module)


def names_in(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    return [[name_of[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "SGD", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    {"name": "Adam", "lr": 1e-3, "betas": [0.8, 0.99], "amsgrad": True},
    {"name": "AdamW", "lr": 1e-3, "weight_decay": 0.1},
    {"name": "RMSprop", "lr": 1e-3, "centered": True, "momentum": 0.5},
    {"name": "Adagrad", "lr": 1e-2, "initial_accumulator_value": 0.1},
    {"name": "Adadelta", "lr": 0.5},
    {"name": "Adafactor", "lr": 1e-2},
    {"name": "Adamax", "lr": 1e-3},
    {"name": "ASGD", "lr": 1e-2},
    {"name": "NAdam", "lr": 1e-3},
    {"name": "RAdam", "lr": 1e-3},
    {"name": "Rprop", "lr": 1e-3, "etas": [0.4, 1.3]},
]


@pytest.mark.parametrize("section", OPTIMIZERS, ids=lambda section: section["name"])
def test_updates_are_bitwise_torchs(section: dict[str, Any]) -> None:
    ours, theirs = network(), network()
    args = {key: value for key, value in section.items() if key != "name"}
    optimizers = [build(ours, **section), getattr(torch.optim, section["name"])(theirs.parameters(), **args)]
    before = [parameter.clone() for parameter in ours.parameters()]
    for _ in range(3):
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            torch.stack([(parameter**2).sum() + parameter.sum() for parameter in module.parameters()]).sum().backward()
            optimizer.step()
    for start, parameter, expected in zip(before, ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(parameter, expected)
        assert not torch.equal(parameter, start)


def test_first_matching_group_wins_and_the_rest_comes_last() -> None:
    module = network()
    groups = [{"match": "*.bias", "weight_decay": 0.0}, {"match": "features.[01].*", "lr": 0.01, "momentum": 0.5}]
    optimizer = build(module, name="SGD", lr=0.1, momentum=0.9, weight_decay=1e-2, param_groups=groups)
    assert names_in(module, optimizer) == [
        ["features.0.bias", "features.1.bias", "features.2.bias", "classifier.0.bias", "classifier.1.bias"],
        ["features.0.weight", "features.1.weight"],
        ["features.2.weight", "classifier.0.weight", "classifier.1.weight"],
    ]
    options = [(group["lr"], group["momentum"], group["weight_decay"]) for group in optimizer.param_groups]
    assert options == [(0.1, 0.9, 0.0), (0.01, 0.5, 1e-2), (0.1, 0.9, 1e-2)]


def test_no_group_for_an_empty_rest() -> None:
    module = network()
    groups = [{"match": "features.*", "lr": 0.01}, {"match": "*"}]
    optimizer = build(module, name="SGD", lr=0.1, param_groups=groups)
    assert [len(names) for names in names_in(module, optimizer)] == [6, 4]


def test_frozen_parameters_are_left_out() -> None:
    module = network()
    module.get_submodule("features").requires_grad_(False)
    (names,) = names_in(module, build(module, name="SGD", lr=0.1))
    assert all(name.startswith("classifier.") for name in names)
    assert len(names) == 4


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"name": "SGD", "lr": 0.1, "nesterov": True},
            "optimizer SGD: Nesterov momentum requires a momentum and zero dampening",
        ),
        ({"name": "Adam", "lr": 0.1, "betas": [1.5, 0.9]}, "optimizer Adam: Invalid beta parameter at index 0: 1.5"),
        (
            {"name": "Adam", "lr": 0.1, "foreach": True, "fused": True},
            "optimizer Adam: `fused` and `foreach` cannot be",
        ),
        ({"name": "Muon", "lr": 0.1}, "optimizer Muon: Muon only supports 2D parameters"),
        (
            {"name": "SGD", "lr": 0.1, "param_groups": [{"match": "features.*", "lr": -1.0}]},
            "optimizer.param_groups.0 SGD: Invalid learning rate: -1.0",
        ),
        (
            {"name": "SGD", "lr": 0.1, "param_groups": [{"match": "Features.*", "lr": 1.0}]},
            r"optimizer.param_groups.0.match: 'Features.\*' matches no parameter .* there are 10: features.0.weight, ",
        ),
        (
            {"name": "SGD", "lr": 0.1, "param_groups": [{"match": "features.*"}, {"match": "features.0.*"}]},
            r"optimizer.param_groups.1.match: 'features.0.\*' all that it matches .* is taken by earlier groups",
        ),
    ],
    ids=["nesterov", "betas", "foreach and fused", "Muon", "group lr", "no match", "shadowed"],
)
def test_refused_values_are_told(section: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(network(), **section)


def test_a_pattern_for_frozen_parameters_matches_nothing() -> None:
    module = network()
    module.get_submodule("features").requires_grad_(False)
    with pytest.raises(UserError, match="matches no parameter that is trained"):
        build(module, name="SGD", lr=0.1, param_groups=[{"match": "features.*", "lr": 0.01}])


def test_nothing_to_train() -> None:
    with pytest.raises(UserError, match="no parameter that can be trained"):
        build(network().requires_grad_(False), name="SGD", lr=0.1)


def test_muon_takes_the_matrices_of_a_linear_model() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    assert isinstance(build(module, name="Muon", lr=0.1), torch.optim.Muon)
