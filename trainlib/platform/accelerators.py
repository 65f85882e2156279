"""What differs between a CPU and the devices of CUDA, ROCm, XPU and MPS, in one place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_PINS_MEMORY = ("cuda", "xpu")  # "cuda" is AMD's ROCm as well


def pins_memory(device: torch.device) -> bool:
    """Return True if copies from pinned memory of the CPU to the device need not be waited for."""
    return device.type in _PINS_MEMORY


def captures_graphs(device: torch.device) -> bool:
    """Return True if what the device is given can be captured once and replayed in one launch."""
    return device.type == "cuda"


def free_memory(device: torch.device) -> int:
    """Return how many bytes of the device's own memory are free; 0 for a device that shares the CPU's."""
    return torch.accelerator.get_memory_info(device)[0] if pins_memory(device) else 0


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def release_cached_memory(device: torch.device) -> None:
    """Give memory that torch keeps for later back to the device; call it where no error holds on to tensors."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()


def seed_device(seed: int, device: torch.device) -> None:
    """Seed torch's generator of a device that is not the CPU."""
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def device_name(device: torch.device) -> str:
    """Return what the maker calls the device; its type where that is not known."""
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type


def host_copy(value: Any) -> Any:
    """Return the same nest of dictionaries and lists, its tensors copied to host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: host_copy(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(host_copy(inner) for inner in value)
    return value
