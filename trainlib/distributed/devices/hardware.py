"""The machine that a run trains on, as plain values: device, threads, versions.

Of environment variables only those by which libraries choose kernels.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from typing import Any

import torch

from trainlib.platform.accelerators import device_name
from trainlib.runs.machine.environment import code_sha256, git_commit, kernel_variables, processor, versions


def ingredients(device: torch.device, world_size: int, *packages: str) -> dict[str, Any]:
    """Return what decides the bits of a step beside the configuration: versions, device, threads, world size.

    packages   that decide bits of this run alone (see `trainlib.runs.machine.environment.versions`)
    """
    name = device_name(device) if device.type != "cpu" else processor()
    return {
        "code": code_sha256(),
        "versions": versions(*packages),
        "device": device.type,
        "device_name": name,
        "world_size": world_size,
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "kernel_variables": kernel_variables(os.environ),
    }


def describe(device: torch.device, world_size: int, *packages: str) -> dict[str, Any]:
    """Return what environment.json tells of the machine and the software; `packages` as in `ingredients`."""
    return ingredients(device, world_size, *packages) | {
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "git_commit": git_commit(),
        "command": sys.argv,
    }
