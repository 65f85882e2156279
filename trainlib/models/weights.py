"""Initial weights: finding the file, reading it safely, and comparing its tensors with the model's."""

from __future__ import annotations

import hashlib
import http.client
import pickle
import pickletools
import re
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from trainlib.config import ModelConfig
from trainlib.config.libraries.catalog import WEIGHTS_SUFFIXES, weights_file, weights_run
from trainlib.errors import WeightsError
from trainlib.models.architectures.registry import BUILT_FOR_CLASSES, INCEPTIONS, empty_init, torchvision_model

State = dict[str, Tensor]
Channels = tuple[float, ...]

NAMES_SHOWN = 3

# Where training programs keep the state_dict in the files that they write.
_NESTED_UNDER = ("state_dict", "model", "model_state_dict")
# The prefixes that DistributedDataParallel and torch.compile add to every name.
_WRAPPERS = re.compile(r"^(?:(?:module|_orig_mod)\.)+")
# DenseNet's published files have dots, as in `norm.1.weight`, where its module names have none.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\..*)$")
_AUXILIARY = re.compile(r"^(?:aux1|aux2|AuxLogits)\.")


def published_weights(config: ModelConfig) -> Enum | None:
    """Return the torchvision weights that `model.weights` names, a member of the model's enum; None for a path or run.

    Raises WeightsError if it is neither.
    """
    from torchvision.models import get_model_weights

    assert config.weights is not None
    members = {} if config.name in BUILT_FOR_CLASSES else dict(get_model_weights(config.name).__members__)
    if config.weights in members:
        member: Enum = members[config.weights]
        return member
    if weights_file(config.weights) or weights_run(config.weights):
        return None
    names = f"one of {', '.join(members)}, or " if members else ""
    raise WeightsError(
        f"model.weights: got {config.weights!r}, must be {names}the path of a file ({', '.join(WEIGHTS_SUFFIXES)})"
    )


def read_weights(config: ModelConfig, device: torch.device) -> State:
    """Read the state_dict of `model.weights`, on the CPU, with the names that the architecture has today.

    For the meta device nothing is downloaded: published weights are empty tensors of the right shapes.
    Raises WeightsError for a file that is missing, damaged or holds anything but tensors.
    """
    member = published_weights(config)
    if member is not None and device.type == "meta":
        image_size = min(member.value.meta["min_size"])
        with empty_init():
            state: State = torchvision_model(config.name, image_size, {}, published_weights=True).state_dict()
        return state
    assert config.weights is not None
    path = weights_file(config.weights) if member is None else _download(config.name, member)
    assert path is not None, "published_weights returns None only for a path"
    if not path.is_file():
        raise WeightsError(
            f"model.weights: got {config.weights!r}, must be an existing file: {path.absolute()} is none"
        )
    with torch.device("cpu"):
        return _canonical(config.name, read_state(path))


def _download(model: str, member: Enum) -> Path:
    """Return the published file in torch's cache folder; download it if it is not there."""
    url = member.value.url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlparse(url).path).name
    if not path.is_file():
        checksum = torch.hub.HASH_REGEX.search(path.name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            prefix = checksum.group(1) if checksum else None
            torch.hub.download_url_to_file(url, str(path), prefix, progress=sys.stderr.isatty())
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise WeightsError(
                f"model.weights: {member.name} of {model} could not be downloaded ({error}). Place the file "
                f"{path.name}, from {url}, in {folder}, or give the path of a file instead of the name"
            ) from error
    return path


def read_state(path: Path, device: str = "cpu") -> State:
    """Read the state_dict in a .pt, .pth or .safetensors file, bare or under `state_dict` or `model`.

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
        raise WeightsError(
            f"model.weights: {path} ({path.stat().st_size} bytes) is damaged or no weights file ({reason[:120]}): "
            "copy or download it again"
        ) from error
    for key in _NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
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


def _canonical(model: str, state: State) -> State:
    """Return the tensors under the names of today's architecture, without wrapper prefixes and auxiliary heads."""
    renamed = {_OLD_DENSENET.sub(r"\1\2", _WRAPPERS.sub("", name)): value for name, value in state.items()}
    if model in INCEPTIONS:
        return {name: value for name, value in renamed.items() if not _AUXILIARY.match(name)}
    return renamed


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
    module.load_state_dict(values, assign=True)


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over the bytes of all tensors in name order, each contiguous and little endian."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
