"""The optimizer's parameter groups: by name pattern, by what decays, and by how near a layer is to the input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from trainlib.config import OptimizerConfig
from trainlib.config.checking.suggest import nearest
from trainlib.errors import UserError
from trainlib.models.architectures.layer_names import is_in

HEAD = "head"  # as a pattern: the parameters of the classifier's last layers, whatever their names
NAMES_SHOWN = 5

# Modules that only hold others: what they hold counts as layers of its own. Of torchvision: RegNet's stages, ViT's.
_TRANSPARENT = ("Sequential", "ModuleList", "AnyStage", "Encoder")
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.RMSNorm,
)

Options = dict[str, Any]


def parameter_groups(
    config: OptimizerConfig, module: nn.Module, heads: Sequence[str], lr: float | None
) -> list[Options]:
    """Return torch's parameter groups, over the parameters that require gradients.

    heads   names of the classifier's last layers; empty where they are not known
    lr      the learning rate of parameters that are in no group of `config.param_groups`; None if there is none

    Those of `config.param_groups` come first, in order, then one of all other parameters. With `no_decay` or
    `layer_decay` each is split by the weight decay and by the layer. A group of a layer whose learning rate is scaled
    has `lr_scale`, and its learning rate without that as `unscaled_lr`. Raises UserError if nothing is trained or a
    pattern matches nothing.
    """
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise UserError("optimizer: the model has no parameter that can be trained; use another model.freeze")
    undecayed = _undecayed(config.no_decay, module)
    scales = {} if config.layer_decay is None else layer_scales(module, config.layer_decay)
    groups: list[Options] = []
    for names, options in _by_pattern(config, list(trainable), heads):
        split: dict[tuple[bool, float], list[str]] = {}
        for name in names:
            without_decay = name in undecayed and "weight_decay" not in options
            split.setdefault((without_decay, scales.get(name, 1.0)), []).append(name)
        for (without_decay, scale), part in split.items():
            group = {"params": [trainable[name] for name in part], **options}
            if without_decay:
                group["weight_decay"] = 0.0
            unscaled = options.get("lr", lr)
            if scales and unscaled is not None:
                group |= {"lr": unscaled * scale, "lr_scale": scale, "unscaled_lr": unscaled}
            groups.append(group)
    return groups


def _by_pattern(
    config: OptimizerConfig, names: Sequence[str], heads: Sequence[str]
) -> Iterator[tuple[list[str], Options]]:
    """Yield the names and options of each configured group, then those of all other parameters."""
    rest = list(names)
    for index, group in enumerate(config.param_groups):
        place = f"optimizer.param_groups.{index}.match"
        if group.match == HEAD and not heads:
            raise UserError(f"{place}: got head, but it is not known which layer of this model is its head: name it")
        matched = [name for name in rest if matches(group.match, name, heads)]
        if not matched:
            raise UserError(f"{place}: {_no_match(group.match, names, heads)}")
        rest = [name for name in rest if name not in set(matched)]
        yield matched, group.args
    if rest:
        yield rest, {}


def matches(pattern: str, name: str, heads: Sequence[str]) -> bool:
    """Return True if a pattern is of a parameter: its whole name, case included, or `head` for the last layers."""
    return is_in(name, heads) if pattern == HEAD else fnmatchcase(name, pattern)


def unmatched(pattern: str, names: Sequence[str], which: str = "parameter") -> str:
    """Return the message about a pattern that matches none of these names, with a similar pattern that does."""
    shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    layers = {f"{name[:end]}.*" for name in names for end, letter in enumerate(name) if letter == "."}
    guess = nearest(pattern, sorted({*names, *layers}))
    meant = f"; did you mean {guess!r}?" if guess else ""
    return f"{pattern!r} matches no {which}; there are {len(names)}: {shown}{meant}"


def _no_match(pattern: str, names: Sequence[str], heads: Sequence[str]) -> str:
    taken = [name for name in names if matches(pattern, name, heads)]
    if taken:
        shown = ", ".join(taken[:NAMES_SHOWN])
        return f"{pattern!r} all that it matches ({shown}) is taken by earlier groups: put it before them"
    return unmatched(pattern, names, "parameter that is trained")


def _undecayed(no_decay: str, module: nn.Module) -> set[str]:
    """Return the names of the parameters that `optimizer.no_decay` keeps from weight decay."""
    if no_decay == "none":
        return set()
    names = {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules()
        if _is_norm(part)
        for name, _ in part.named_parameters(recurse=False)
    }
    if no_decay == "norm_and_bias":
        names |= {name for name, p in module.named_parameters() if p.ndim <= 1 or name.endswith(".bias")}
        listed = getattr(module, "no_weight_decay", None)  # timm's models name tables of positions and the like
        patterns = list(listed()) if callable(listed) else []
        names |= {name for name, _ in module.named_parameters() for pattern in patterns if fnmatchcase(name, pattern)}
    return names


def _is_norm(module: nn.Module) -> bool:
    """Return True for a layer that normalises: one of torch's, or of a class that is called so and holds vectors."""
    if isinstance(module, _NORMS):
        return True
    own = list(module.parameters(recurse=False))
    return "norm" in type(module).__name__.lower() and bool(own) and all(p.ndim <= 1 for p in own)


def layer_scales(module: nn.Module, decay: float) -> dict[str, float]:
    """Return what the learning rate of each parameter is multiplied by: 1 for the last layer, less for earlier ones.

    decay   factor from each layer to the one before it
    """
    layers = layer_numbers(module)
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}


def layer_numbers(module: nn.Module) -> dict[str, int]:
    """Return the number of the layer that each parameter is in, from 0 at the input.

    A timm model says by itself what its blocks are. In others, a block is a module that is no mere list of modules; a
    single convolution or linear layer is one too, and all else (norms, tokens, positions) belongs to what is before it.
    """
    matcher = getattr(module, "group_matcher", None)
    if callable(matcher):
        from timm.models import group_parameters

        return {str(k): int(n) for k, n in group_parameters(module, matcher(coarse=False), reverse=True).items()}
    numbers: dict[str, int] = {}
    layer = -1
    for name, begins in _in_order(module, ""):
        layer += begins
        numbers[name] = max(layer, 0)
    return numbers


def _in_order(module: nn.Module, prefix: str) -> Iterator[tuple[str, bool]]:
    """Yield every parameter, in the model's order, and whether a layer begins with it."""
    for name, _ in module.named_parameters(recurse=False):
        yield prefix + name, False
    for child_name, child in module.named_children():
        inner = f"{prefix}{child_name}."
        if type(child).__name__ in _TRANSPARENT:
            yield from _in_order(child, inner)
            continue
        is_block = next(child.children(), None) is not None
        begins = is_block or any(p.ndim > 1 for p in child.parameters(recurse=False))
        for name, _ in child.named_parameters():
            yield inner + name, begins
            begins = False
