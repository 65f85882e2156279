"""The optimizer: a class of torch.optim, or our own, by name, with parameter groups chosen by name pattern."""

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
# By device type, the optimizers with a fused kernel, which updates all parameters at once and skips the update if the
# device flag `found_inf` is 1. None on CPUs, where the fused kernel rounds differently from torch's loop.
FUSED = {"cuda": ("SGD", "Adam", "AdamW", "Adagrad")}
# Options that choose an optimizer's kernels. They suit the device, which may be another one after a resume, so that a
# checkpoint's values of them are not restored.
KERNEL_OPTIONS = ("fused", "foreach", "capturable", "differentiable")
DECORATED = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")


def build_optimizer(
    config: OptimizerConfig, named_parameters: Iterable[tuple[str, nn.Parameter]], device: torch.device | None = None
) -> Optimizer:
    """Build the configured optimizer over the parameters that require gradients.

    named_parameters   parameters with canonical names (no `module.`, no `_orig_mod.`), which the patterns of
                       `param_groups` match as a whole, case included; the first match wins
    device             the device that it will step on, for the choice of kernels; None: torch's own choice

    Its parameter groups are those of the configuration, in order, then one of all other parameters, if there are any.
    Raises UserError if no parameter is trained, a group is empty, or torch refuses an argument.
    """
    trainable = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
    if not trainable:
        raise UserError("optimizer: the model has no parameter that can be trained; use another model.freeze")
    groups: list[dict[str, Any]] = []
    rest = dict(trainable)
    for index, group in enumerate(config.param_groups):
        matched = [name for name in rest if fnmatchcase(name, group.match)]
        if not matched:
            raise UserError(_no_match(index, group.match, list(trainable)))
        _check_options(f"optimizer.param_groups.{index}", config, config.args | group.args)
        groups.append({"params": [rest.pop(name) for name in matched], **group.args})
    if rest:
        groups.append({"params": list(rest.values())})
    return _construct("optimizer", config.name, groups, _kernels(config, trainable.values(), device) | config.args)


def _kernels(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter], device: torch.device | None
) -> dict[str, Any]:
    """Return `fused` if the device has a fused kernel and the configuration asks for no other kernels."""
    options = {*config.args, *(option for group in config.param_groups for option in group.args)}
    has_fused = device is not None and config.name in FUSED.get(device.type, ())
    if (
        has_fused
        and not options & {"fused", "foreach", "differentiable"}
        and all(p.is_floating_point() for p in parameters)
    ):
        return {"fused": True}
    return {}


def skips_on_found_inf(optimizer: Optimizer) -> bool:
    """Return True if the optimizer leaves all weights unchanged when its device tensor `found_inf` is 1.

    torch's fused kernels do, and MuonSGD.
    """
    return isinstance(optimizer, MuonSGD) or all(group.get("fused") for group in optimizer.param_groups)


def undecorated(optimizer_class: type[Optimizer]) -> type[Optimizer]:
    """Return a subclass of an optimizer whose methods lack torch's decorators; it computes the same.

    Hooks are called if there are any. The decorators disable torch.compile inside of the methods, which are not
    compiled here, and import torch's compiler when the first optimizer is made: more than a second, as much as the rest
    of torch. The report of each step to torch's profiler takes 0.03 ms.
    """
    methods = {name: inspect.unwrap(getattr(optimizer_class, name)) for name in DECORATED}
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
    """Raise UserError for options of a group that the class refuses: torch checks only those of the constructor."""
    _construct(place, config.name, [nn.Parameter(torch.zeros(1, 1, device="cpu"))], options)


def _no_match(index: int, pattern: str, trainable: list[str]) -> str:
    taken = [name for name in trainable if fnmatchcase(name, pattern)]
    if taken:
        reason = (
            f"all that it matches ({', '.join(taken[:NAMES_SHOWN])}) is taken by earlier groups: put it before them"
        )
    else:
        shown = ", ".join(trainable[:NAMES_SHOWN]) + (", ..." if len(trainable) > NAMES_SHOWN else "")
        reason = f"matches no parameter that is trained; there are {len(trainable)}: {shown}"
    return f"optimizer.param_groups.{index}.match: {pattern!r} {reason}"
