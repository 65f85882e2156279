"""What a run ran on: versions, devices, code. Written to environment.json; holds no environment variables."""

from __future__ import annotations

import platform
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("trainlaunch", "torch", "torchvision", "accelerate", "numpy", "pillow", "safetensors", "wandb")


def versions() -> dict[str, str | None]:
    """Installed versions of what decides the bits of a result, or None where a package is missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def describe(device: torch.device, world_size: int) -> dict[str, Any]:
    """The machine and the software, as plain values."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "device": device.type,
        "device_name": name,
        "world_size": world_size,
        "num_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "git_commit": git_commit(),
        "command": sys.argv,
    }


def git_commit() -> str | None:
    """The commit that this code is from, with `+changes` when the tree differs from it; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        if not (Path(git("rev-parse", "--show-toplevel")) / "trainlib").samefile(here):
            return None  # installed into somebody else's checkout
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
