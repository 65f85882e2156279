"""The optimizer: any class of torch.optim, or our own, by name, with parameter groups chosen by name pattern."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainlib.config import OptimizerConfig
from trainlib.errors import UserError
from trainlib.muon import MuonSGD

OWN: Mapping[str, type[Optimizer]] = {"MuonSGD": MuonSGD}
NAMES_SHOWN = 5


def build_optimizer(config: OptimizerConfig, named_parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
    """The configured optimizer over the parameters that require gradients.

    named_parameters   canonical names (no `module.`, no `_orig_mod.`), which `param_groups` match as globs on the whole
                       name, case included; the first match wins
    Its groups are those of the configuration, in order, then the rest, where there is any.
    Raises UserError when there is nothing to train, a group would be empty, or a value or parameter is refused.
    """
    trainable = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
    if not trainable:
        raise UserError("optimizer: the model has no parameter that can be trained; use another model.freeze")
    groups: list[dict[str, Any]] = []
    rest = dict(trainable)
    for index, group in enumerate(config.param_groups):
        matched = [name for name in rest if fnmatchcase(name, group.match)]
        if not matched:
            raise UserError(_matches_nothing(index, group.match, list(trainable)))
        _check_options(f"optimizer.param_groups.{index}", config, config.args | group.args)
        groups.append({"params": [rest.pop(name) for name in matched], **group.args})
    if rest:
        groups.append({"params": list(rest.values())})
    return _construct("optimizer", config.name, groups, config.args)


def _construct(place: str, name: str, params: list[Any], options: dict[str, Any]) -> Optimizer:
    try:
        cls = OWN[name] if name in OWN else getattr(torch.optim, name)
        optimizer: Optimizer = cls(params, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{place} {name}: {error}") from error
    return optimizer


def _check_options(place: str, config: OptimizerConfig, options: dict[str, Any]) -> None:
    """Let the class judge a group's options: it checks only those that a constructor gets, not those inside a group."""
    _construct(place, config.name, [nn.Parameter(torch.zeros(1, 1, device="cpu"))], options)


def _matches_nothing(index: int, pattern: str, trainable: list[str]) -> str:
    taken = [name for name in trainable if fnmatchcase(name, pattern)]
    if taken:
        reason = (
            f"all that it matches ({', '.join(taken[:NAMES_SHOWN])}) is taken by earlier groups: put it before them"
        )
    else:
        shown = ", ".join(trainable[:NAMES_SHOWN]) + (", ..." if len(trainable) > NAMES_SHOWN else "")
        reason = f"matches no parameter that is trained; there are {len(trainable)}: {shown}"
    return f"optimizer.param_groups.{index}.match: {pattern!r} {reason}"
