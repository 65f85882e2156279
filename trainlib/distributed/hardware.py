"""The machine that a run trains on, as plain values: device, threads, versions. Holds no environment variables."""

from __future__ import annotations

import platform
import socket
import sys
from typing import Any

import torch

from trainlib.runs.environment import git_commit, versions


def ingredients(device: torch.device, world_size: int) -> dict[str, Any]:
    """What decides the bits of a step beside the configuration, as plain values."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": versions(),
        "device": device.type,
        "device_name": name,
        "world_size": world_size,
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def describe(device: torch.device, world_size: int) -> dict[str, Any]:
    """The machine and the software, as plain values."""
    return ingredients(device, world_size) | {
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "git_commit": git_commit(),
        "command": sys.argv,
    }
