"""The optimizer: a class of torch.optim, or one of our own, by name, with its parameter groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from trainlib.config import OptimizerConfig
from trainlib.errors import UserError
from trainlib.models.optimizers.groups import parameter_groups
from trainlib.models.optimizers.lamb import LAMB
from trainlib.models.optimizers.muon import MuonSGD

OWN: Mapping[str, type[Optimizer]] = {"LAMB": LAMB, "MuonSGD": MuonSGD}
# Options that choose an optimizer's kernels. They suit the device, which may be another one after a resume, so that a
# checkpoint's values of them are not restored.
KERNEL_OPTIONS = ("fused", "foreach", "capturable", "differentiable")
DECORATED = ("step", "zero_grad", "add_param_group", "state_dict", "load_state_dict")


def build_optimizer(
    config: OptimizerConfig,
    module: nn.Module,
    heads: Sequence[str] = (),
    device: torch.device | None = None,
    own: Callable[..., Optimizer] | None = None,
) -> Optimizer:
    """Build the configured optimizer over the parameters of a model that require gradients.

    module   the model itself, whose names have no `module.` or `_orig_mod.` before them
    heads    names of its last layers, which `match: head` means; empty where they are not known
    device   the device that it will step on, for the choice of kernels; None: torch's own choice
    own      makes an optimizer of the user's own, in place of the class that the configuration names

    Its parameter groups are those of `parameter_groups`. Raises UserError if no parameter is trained, a group is empty,
    or torch refuses an argument.
    """
    if own is not None:
        return _own_optimizer(config, module, heads, own)
    for index, group in enumerate(config.param_groups):
        _check_options(f"optimizer.param_groups.{index}", config, config.args | group.args)
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    options = _kernels(config, trainable, device) | config.args
    groups = parameter_groups(config, module, heads, options.get("lr", _default_lr(config.name)))
    return _construct("optimizer", config.name, groups, options)


def _own_optimizer(
    config: OptimizerConfig, module: nn.Module, heads: Sequence[str], own: Callable[..., Optimizer]
) -> Optimizer:
    """Return an optimizer of the user's own. Raises UserError unless it is one that a schedule can move."""
    groups = parameter_groups(config, module, heads, config.args.get("lr"))
    try:
        optimizer = own(groups, **config.args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer {config.name}: {error}") from error
    if not isinstance(optimizer, Optimizer):
        got = type(optimizer).__name__
        raise UserError(f"optimizer {config.name}: returned a {got}, must return a torch.optim.Optimizer")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held != {id(parameter) for group in groups for parameter in group["params"]}:
        raise UserError(f"optimizer {config.name}: must hold the parameters that it is given, each of them")
    if any("lr" not in group for group in optimizer.param_groups):
        raise UserError(f"optimizer {config.name}: each of its param_groups must have an lr, which a schedule moves")
    return optimizer


def _default_lr(name: str) -> float | None:
    """Return the learning rate that an optimizer has where none is given; None for one without."""
    default = inspect.signature(_class_of(name)).parameters.get("lr")
    return None if default is None or not isinstance(default.default, int | float) else float(default.default)


def _kernels(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter], device: torch.device | None
) -> dict[str, Any]:
    """Return `fused` if the device has a fused kernel and the configuration asks for no other kernels.

    None on CPUs, where the fused kernel rounds differently from torch's loop.
    """
    options = {*config.args, *(option for group in config.param_groups for option in group.args)}
    if (
        device is not None
        and device.type != "cpu"
        and not options & {"fused", "foreach", "differentiable"}
        and all(p.is_floating_point() for p in parameters)
        and has_fused_kernel(config.name, config.args, device)
    ):
        return {"fused": True}
    return {}


def has_fused_kernel(name: str, options: Mapping[str, Any], device: torch.device) -> bool:
    """Return True if an optimizer can update all parameters at once, and skips that if the flag `found_inf` is 1.

    It is asked: which optimizers can, and on which devices, changes from version to version of torch.
    """
    parameter = nn.Parameter(torch.ones(1, device=device))
    parameter.grad = torch.ones(1, device=device)
    try:
        optimizer = undecorated(_class_of(name))([parameter], **{**options, "fused": True})
        optimizer.found_inf = torch.ones((), device=device)  # type: ignore[attr-defined]
        optimizer.step()
    except (TypeError, ValueError, RuntimeError):
        return False
    return bool(parameter.item() == 1)


def skips_on_found_inf(optimizer: Optimizer) -> bool:
    """Return True if the optimizer leaves all weights unchanged when its device tensor `found_inf` is 1.

    torch's fused kernels do, and MuonSGD. They also take a learning rate that is a scalar of the device.
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


def _class_of(name: str) -> type[Optimizer]:
    found: type[Optimizer] = OWN[name] if name in OWN else getattr(torch.optim, name)
    return found


def _construct(place: str, name: str, params: list[Any], options: dict[str, Any]) -> Optimizer:
    try:
        optimizer = undecorated(_class_of(name))(params, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{place} {name}: {error}") from error
    return optimizer


def _check_options(place: str, config: OptimizerConfig, options: dict[str, Any]) -> None:
    """Raise UserError for options of a group that the class refuses: torch checks only those of the constructor."""
    _construct(place, config.name, [nn.Parameter(torch.zeros(1, 1, device="cpu"))], options)
