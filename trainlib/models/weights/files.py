"""Files of weights: reading them safely, and comparing their tensors with a model's."""

from __future__ import annotations

import hashlib
import logging
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainlib.errors import WeightsError

logger = logging.getLogger("trainlib.models")

State = dict[str, Tensor]

NAMES_SHOWN = 3

# Where training programs keep the state_dict in the files that they write. Those of timm and torchvision may hold an
# average beside it, which comes first, as timm itself has it.
_AVERAGES = ("state_dict_ema", "model_ema")
_NESTED_UNDER = (*_AVERAGES, "state_dict", "model", "model_state_dict")
# The prefixes that DistributedDataParallel and torch.compile add to every name.
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+")
# DenseNet's published files have dots, as in `norm.1.weight`, where its module names have none.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\..*)$")
_NUM_AVERAGED = "n_averaged"  # beside the weights of torch's AveragedModel
_AUXILIARY = re.compile(r"^(?:aux1|aux2|AuxLogits)\.")


def read_state(path: Path, device: str = "cpu") -> State:
    """Read the state_dict in a .pt, .pth or .safetensors file, bare or under `state_dict` or `model`, or its average.

    device   "meta" for the shapes alone: the values are not read

    No code in the file is run. Raises WeightsError for a file that is damaged or holds anything but tensors.
    """
    try:
        content = _load(path, device)
    except Exception as error:  # a damaged file can raise anything
        if isinstance(error, pickle.UnpicklingError) and _is_whole_pickle(path):
            raise WeightsError(
                f"model.weights: {path} holds more than tensors; reading that can run code, so it was not read. "
                "If you trust it, convert it where its own code is installed: load it with "
                f"torch.load({path.name!r}, weights_only=False) and torch.save its state_dict alone"
            ) from error
        reason = str(error).split("\n")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's sentence is about an option of its own
            reason = "torch.save did not write it"
        raise WeightsError(
            f"model.weights: {path} ({path.stat().st_size} bytes) is damaged or no weights file ({reason[:120]}): "
            "copy or download it again"
        ) from error
    for key in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            if key in _AVERAGES and device != "meta":
                logger.info("model.weights: of %s the average, %r, is taken", path, key)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        found = (
            f"a mapping of {', '.join(map(repr, list(content)[:6]))}"
            if isinstance(content, Mapping)
            else repr(type(content))
        )
        raise WeightsError(
            f"model.weights: {path} must hold a state_dict (tensors by name), bare or under 'state_dict' or 'model'; "
            f"it holds {found}"
        )
    return {str(name): value for name, value in content.items()}


def _load(path: Path, device: str) -> Any:
    if path.suffix == ".safetensors":
        from safetensors import safe_open
        from safetensors.torch import load_file

        if device == "meta":
            with safe_open(path, "pt") as file:
                return {name: torch.empty(file.get_slice(name).get_shape(), device=device) for name in file.keys()}  # noqa: SIM118
        return load_file(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        return torch.load(path, map_location=device, weights_only=True)


def _is_whole_pickle(path: Path) -> bool:
    """Return True for a zip, or a pickle that can be parsed to its end: refused for its content, not for damage."""
    if zipfile.is_zipfile(path):
        return True
    try:
        with path.open("rb") as file:
            return any(opcode.name == "STOP" for opcode, _, _ in pickletools.genops(file))
    except Exception:  # noqa: BLE001 a damaged file can raise anything
        return False


def canonical(state: State, *, auxiliary: bool = True) -> State:
    """Return the tensors under the names of today's architecture, without the prefixes of wrappers.

    auxiliary   False to leave out auxiliary heads, which a model may be built without
    """
    renamed = {_OLD_DENSENET.sub(r"\1\2", _WRAPPERS.sub("", name)): value for name, value in state.items()}
    renamed.pop(_NUM_AVERAGED, None)
    return renamed if auxiliary else {name: value for name, value in renamed.items() if not _AUXILIARY.match(name)}


@dataclass(frozen=True)
class StateMismatch:
    """The differences between a state_dict and a model's: parameter names and, for `mismatched`, both shapes."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": self.mismatched}
        return "; ".join(f"{len(names)} {kind}: {first_names(names)}" for kind, names in kinds.items() if names)


def first_names(names: list[str]) -> str:
    """Return the first names of a list, separated by commas."""
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def compare_state(module: nn.Module, state: State) -> StateMismatch:
    """Return the differences that keep a state_dict from loading into a module.

    BatchNorm's counters, which old files lack, may be missing.
    """
    expected = module.state_dict()
    return StateMismatch(
        missing=[n for n in expected if n not in state and not n.endswith("num_batches_tracked")],
        unexpected=[n for n in state if n not in expected],
        mismatched=[
            f"{n} (file {_shape(state[n])}, model {_shape(expected[n])})"
            for n in expected
            if n in state and state[n].shape != expected[n].shape
        ],
    )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def assign_state(module: nn.Module, state: State, device: torch.device) -> None:
    """Replace the module's tensors by those of a matching state_dict, in the module's dtypes, on this device.

    `state` is emptied one tensor at a time, so that the weights are in memory once. Nothing is done on the meta device.
    """
    if device.type == "meta":
        return
    values: OrderedDict[str, Tensor] = OrderedDict()
    for name, expected in module.state_dict().items():
        value = state.pop(name) if name in state else torch.zeros((), device="cpu")
        values[name] = value.to(device, expected.dtype, copy=True, memory_format=torch.contiguous_format)
    load_weights(module, values, assign=True)


def for_safetensors(state: Mapping[str, Tensor]) -> State:
    """Return the tensors contiguous, and each in memory of its own, which safetensors asks for: shared ones are copied.

    timm's CoaT has layers under several names, and so may models of one's own.
    """
    separate, places = State(), set[int]()
    for name, tensor in state.items():
        value = tensor.contiguous()
        place = value.untyped_storage().data_ptr()
        separate[name] = value.clone() if place in places else value
        places.add(place)
    return separate


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the bytes of all tensors in name order, each contiguous and little endian."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_weights(module: nn.Module, state: Mapping[str, Tensor], *, strict: bool = True, assign: bool = False) -> None:
    """Load a state_dict into a module: torch's `load_state_dict`, for tensors without the versions of their layers.

    safetensors files do not hold those, and torchvision's MNASNet refuses its own weights without them.
    """
    versioned = OrderedDict(state)
    versioned._metadata = getattr(module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    module.load_state_dict(versioned, strict=strict, assign=assign)
