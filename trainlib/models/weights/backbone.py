"""Weights of which only the backbone fits: of another head, without one, or with a prefix before every name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainlib.errors import WeightsError
from trainlib.models.architectures.layer_names import is_in
from trainlib.models.weights.files import State, compare_state, first_names


def find_backbone(module: nn.Module, heads: Sequence[str], state: State) -> tuple[State, str] | None:
    """Return the tensors of a state_dict that fit all of a module but its last layer, and a sentence about the others.

    heads   names of the last layers, whose tensors may be missing or of another shape

    Names may have a common prefix, such as `module.`, `backbone.` or `model.encoder.`. None if the backbone does not
    fit: a tensor is missing or of another shape, or the file has more layers of the backbone than the module.
    Raises WeightsError if two networks of the file fit.
    """
    fits = (_fit(module, heads, state, prefix) for prefix in _prefixes(module, state))
    fitting = [found for found in fits if found is not None]
    if len(fitting) > 1:
        prefixes = ", ".join(prefix or "no prefix" for _, prefix in fitting)
        raise WeightsError(
            f"model.weights: the file holds {len(fitting)} networks that fit, with the prefixes {prefixes}: save one "
            "alone"
        )
    if not fitting:
        return None
    [(backbone, prefix)] = fitting
    left_out = sorted(name for name in state if name.removeprefix(prefix) not in backbone)
    return backbone, _sentence(heads, backbone, left_out, prefix)


def without_common_prefix(module: nn.Module, state: State) -> State:
    """Return the state_dict without the prefix that all of its names have, if what follows are the module's names."""
    prefixes = _prefixes(module, state)
    if len(prefixes) != 1 or not all(name.startswith(prefixes[0]) for name in state):
        return state
    return {name.removeprefix(prefixes[0]): tensor for name, tensor in state.items()}


def _prefixes(module: nn.Module, state: State) -> list[str]:
    """Return what stands before the name of the module's first tensor in the file, once for each place of it."""
    first = next(iter(module.state_dict()))
    return [name.removesuffix(first) for name in state if name == first or name.endswith(f".{first}")]


def _fit(module: nn.Module, heads: Sequence[str], state: State, prefix: str) -> tuple[State, str] | None:
    named = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    mismatch = compare_state(module, named)
    mismatched = [text.partition(" (")[0] for text in mismatch.mismatched]
    if any(not is_in(name, heads) for name in [*mismatch.missing, *mismatched]):
        return None
    children = [name for name, _ in module.named_children()]
    if any(_top(name) in children and not is_in(name, heads) for name in mismatch.unexpected):
        return None  # the file is of a larger network, such as a ResNet-34 for a ResNet-18
    dropped = {*mismatched, *mismatch.unexpected}
    incomplete = any(is_in(name, heads) for name in (*dropped, *mismatch.missing))  # without its bias it is no head
    return {n: t for n, t in named.items() if n not in dropped and not (incomplete and is_in(n, heads))}, prefix


def _sentence(heads: Sequence[str], backbone: State, left_out: list[str], prefix: str) -> str:
    parts = [f"{len(backbone)} tensors are loaded"]
    if prefix:
        parts[0] += f", without the prefix {prefix!r} of their names"
    if left_out:
        parts.append(f"left out are {len(left_out)} of the file: {first_names(left_out)}")
    if not any(is_in(name, heads) for name in backbone):
        layers = f"layer, {heads[0]}, begins" if len(heads) == 1 else f"layers, {', '.join(heads)}, begin"
        parts.append(f"the last {layers} with random weights")
    return "; ".join(parts)


def _top(name: str) -> str:
    return name.partition(".")[0]


def require_finite(state: State, dtypes: State) -> None:
    """Raise WeightsError, naming the tensor, for a value that is infinite or not a number in the module's dtype.

    So are those of another kind: quantized, complex or sparse.

    dtypes   the module's own tensors, by name
    """
    for name, tensor in state.items():
        expected = dtypes[name].dtype if name in dtypes else tensor.dtype
        if expected.is_floating_point and not (tensor.is_floating_point() and tensor.layout is torch.strided):
            raise WeightsError(
                f"model.weights: {name} holds {tensor.dtype} ({tensor.layout}), must hold plain floating-point "
                "numbers: save it as such (float, dequantize, to_dense)"
            )
        if expected.is_floating_point and not _is_finite(tensor, expected):
            raise WeightsError(
                f"model.weights: {name} holds values that are infinite or not a number: the file is of a training that "
                "failed, or is damaged; use an earlier checkpoint of it"
            )


def _is_finite(tensor: Tensor, dtype: torch.dtype) -> bool:
    return tensor.device.type == "meta" or bool(torch.isfinite(tensor.to(dtype)).all())
