"""LAMB: whole steps against timm's own, with parameters that get their first gradient later."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainlib.config import OptimizerConfig
from trainlib.errors import UserError
from trainlib.models.optimizers.build import build_optimizer

SHAPES = ((4, 3), (4,), (2, 3, 3, 3), (1,))


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    made = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    return [*map(nn.Parameter, made), nn.Parameter(torch.zeros(5, dtype=dtype))]  # weights of norm 0


def gradients(step: int, like: list[nn.Parameter]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in like]


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"weight_decay": 0.0},
        {"weight_decay": 0.0, "always_adapt": True},
        {"weight_decay": 0.1, "trust_clip": True},
        {"betas": [0.8, 0.95], "eps": 1e-3},
    ],
)
def test_every_step_is_that_of_timm(args: dict[str, Any]) -> None:
    timm = pytest.importorskip("timm.optim.lamb")
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    module = nn.ParameterList(ours)
    optimizer = build_optimizer(OptimizerConfig.model_validate({"name": "LAMB", "lr": 0.02, **args}), module)
    peer = timm.Lamb(theirs, lr=0.02, max_grad_norm=None, foreach=False, **args)
    for step in range(6):
        for mine, other, gradient in zip(ours, theirs, gradients(step, ours), strict=True):
            mine.grad, other.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        peer.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.allclose(mine, other, rtol=1e-10, atol=1e-12)


def test_a_parameter_counts_from_its_first_gradient() -> None:
    """As alone in a fresh optimizer: the bias corrections are those of its own first steps."""
    early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    config = OptimizerConfig.model_validate({"name": "LAMB", "lr": 0.1})
    optimizer = build_optimizer(config, nn.ParameterList([early, late]))
    for _ in range(3):
        early.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(late, torch.ones(3))
    alone = nn.Parameter(torch.ones(3))
    late.grad = alone.grad = torch.tensor([1.0, 2.0, 3.0])
    build_optimizer(config, nn.ParameterList([alone])).step()
    optimizer.step()
    assert torch.equal(late, alone)


def test_a_saved_state_goes_on_in_the_same_bits() -> None:
    config = OptimizerConfig.model_validate({"name": "LAMB", "lr": 0.1})
    whole, resumed = parameters(), parameters()
    optimizer = build_optimizer(config, nn.ParameterList(whole))
    for step in range(4):
        if step == 2:
            again = build_optimizer(config, nn.ParameterList(resumed))
            with torch.no_grad():
                for mine, other in zip(resumed, whole, strict=True):
                    mine.copy_(other)
            again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for both, stepped in ((whole, optimizer), (resumed, again if step >= 2 else None)):
            for parameter, gradient in zip(both, gradients(step, both), strict=True):
                parameter.grad = gradient
            if stepped is not None:
                stepped.step()
    assert all(torch.equal(mine, other) for mine, other in zip(whole, resumed, strict=True))


@pytest.mark.parametrize(
    ("args", "message"),
    [({"eps": -1.0}, "eps: got -1.0, must be >= 0"), ({"betas": [0.9, 1.0]}, "betas")],
)
def test_values_without_a_meaning_are_refused(args: dict[str, Any], message: str) -> None:
    config = OptimizerConfig.model_validate({"name": "LAMB", "lr": 0.1, **args})
    with pytest.raises(UserError, match=message):
        build_optimizer(config, nn.Linear(2, 2))
