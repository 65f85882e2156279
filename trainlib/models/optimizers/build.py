"""The optimizer: any class of torch.optim, or our own, by name, with parameter groups chosen by name pattern."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainlib.config import OptimizerConfig
from trainlib.errors import UserError
from trainlib.models.optimizers.muon import MuonSGD

OWN: Mapping[str, type[Optimizer]] = {"MuonSGD": MuonSGD}
NAMES_SHOWN = 5
# One kernel for all parameters, which can also be told by a flag on the device that a gradient is not to be applied.
# None on CPUs: there it rounds otherwise than torch's loop over the parameters does.
FUSED = {"cuda": ("SGD", "Adam", "AdamW", "Adagrad")}
# Options that choose an optimizer's kernels. They suit the device, which may be another one after a resume, so that a
# checkpoint's values of them are not restored.
KERNEL_OPTIONS = ("fused", "foreach", "capturable", "differentiable")
GUARDED = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")


def build_optimizer(
    config: OptimizerConfig, named_parameters: Iterable[tuple[str, nn.Parameter]], device: torch.device | None = None
) -> Optimizer:
    """The configured optimizer over the parameters that require gradients.

    named_parameters   canonical names (no `module.`, no `_orig_mod.`), which `param_groups` match as globs on the whole
                       name, case included; the first match wins
    device             on which it will step, for the choice of its kernels; None = torch's own choice
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
    return _construct("optimizer", config.name, groups, _kernels(config, trainable.values(), device) | config.args)


def _kernels(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter], device: torch.device | None
) -> dict[str, Any]:
    """`fused`, where this device has one kernel for all that the optimizer does, and nothing else is asked for."""
    asked = {*config.args, *(option for group in config.param_groups for option in group.args)}
    suits = device is not None and config.name in FUSED.get(device.type, ())
    if suits and not asked & {"fused", "foreach", "differentiable"} and all(p.is_floating_point() for p in parameters):
        return {"fused": True}
    return {}


def skips_on_found_inf(optimizer: Optimizer) -> bool:
    """Whether its steps change no weight where `found_inf`, a tensor on their device, is 1: fused ones, and ours."""
    return isinstance(optimizer, MuonSGD) or all(group.get("fused") for group in optimizer.param_groups)


def undecorated(optimizer_class: type[Optimizer]) -> type[Optimizer]:
    """The same optimizer, whose methods are torch's own without what torch puts around them.

    What is computed is the same, and hooks are called where there are any. But the decorators that guard the methods
    from torch.compile, which nothing here does with an optimizer, import torch's compiler the first time that one is
    made: more than a second, as much as the rest of torch. And to tell torch's profiler of each step takes 0.03 ms.
    """
    methods = {name: inspect.unwrap(getattr(optimizer_class, name)) for name in GUARDED}
    bare = torch.no_grad()(methods["step"])
    with_hooks = Optimizer.profile_hook_step(bare)

    def step(self: Optimizer, closure: Callable[[], float] | None = None) -> Any:
        has_hooks = any(getattr(self, f"_optimizer_step_{when}_hooks", True) for when in ("pre", "post"))
        return with_hooks(self, closure) if has_hooks else bare(self, closure)

    step.hooked = True  # type: ignore[attr-defined] # torch's mark of a step that it need not wrap
    return type(
        optimizer_class.__name__, (optimizer_class,), methods | {"step": step, "__doc__": optimizer_class.__doc__}
    )


def _construct(place: str, name: str, params: list[Any], options: dict[str, Any]) -> Optimizer:
    try:
        optimizer_class: type[Optimizer] = OWN[name] if name in OWN else getattr(torch.optim, name)
        optimizer = undecorated(optimizer_class)(params, **options)
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
