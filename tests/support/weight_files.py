"""Files of weights in every form that is read, and models that are built with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from trainlib.config import ModelConfig
from trainlib.models import Classifier, build_model

NAME = "shufflenet_v2_x0_5"  # small, with BatchNorm
State = dict[str, Tensor]


def section(**values: Any) -> ModelConfig:
    return ModelConfig.model_validate({"name": NAME} | values)


def build(num_classes: int = 10, image_size: int = 32, **values: Any) -> Classifier:
    return build_model(section(**values), num_classes, image_size)


def stock(name: str = NAME, seed: int = 7, **args: Any) -> State:
    """A stock torchvision model's state, with every value different from a fresh model's."""
    torch.manual_seed(seed)
    state: State = torchvision.models.get_model(name, **args).state_dict()
    return {k: v + 0.5 if v.is_floating_point() else v + 3 for k, v in state.items()}


def assert_same(module: nn.Module, expected: State) -> None:
    state = module.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
        assert state[name].dtype == tensor.dtype


def without_head(state: State, head: str = "fc") -> State:
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"{head}.")}


def as_pth(state: State, path: Path) -> Path:
    torch.save(state, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def as_old_format(state: State, path: Path) -> Path:
    torch.save(state, path.with_suffix(".pt"), _use_new_zipfile_serialization=False)
    return path.with_suffix(".pt")


def as_safetensors(state: State, path: Path) -> Path:
    safetensors.torch.save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")
