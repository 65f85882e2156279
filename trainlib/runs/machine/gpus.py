"""Number of GPUs of this machine, counted without importing torch: by the driver's program, else by device files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from trainlib.runs.machine.launch_variables import uses_cpu

VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")  # the last two are of AMD's ROCm


def count_gpus(root: Path = Path("/")) -> int:
    """Return the number of GPUs that a training on this machine may use.

    root   the folder that has dev, proc and sys in it
    """
    return 0 if uses_cpu(os.environ) else visible_gpus(installed_gpus(root), os.environ)


def visible_gpus(installed: int, environment: Mapping[str, str]) -> int:
    """Return how many of the `installed` GPUs a program may use that is started with this environment."""
    if uses_cpu(environment):
        return 0
    return min(installed, *(_named(environment[name]) for name in VISIBLE if name in environment), installed)


def gpus_without(left_out: Collection[str]) -> list[str]:
    """Return how CUDA_VISIBLE_DEVICES names the GPUs of NVIDIA that answer and may be used, without some.

    left_out   UUIDs, with or without `GPU-` before them
    """
    lines = _listing() or []
    found = [re.search(r"\(UUID: (\S+)\)", line) for line in lines]
    uuids = [match[1] if match else str(index) for index, match in enumerate(found)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    num_usable = visible_gpus(len(uuids), os.environ)
    if visible is not None:
        names = [entry.strip() for entry in visible.split(",")]
        uuids = [uuids[int(name)] if name.isdecimal() and int(name) < len(uuids) else name for name in names]
    bad = [uuid.removeprefix("GPU-") for uuid in left_out]  # CUDA takes the beginning of one as well
    return [uuid for uuid in uuids[:num_usable] if not any(w.startswith(uuid.removeprefix("GPU-")) for w in bad)]


def installed_gpus(root: Path = Path("/")) -> int:
    """Return the number of GPUs of NVIDIA, else of AMD, that this machine has, or lets this container or job use."""
    listed = _listed_by_driver()
    if listed is not None:
        return listed
    openable = [file for file in (root / "dev").glob("nvidia*") if _is_gpu(file) and _can_open(file)]
    if openable or any(_is_gpu(file) for file in (root / "dev").glob("nvidia*")):
        return len(openable)
    return len([*(root / "proc/driver/nvidia/gpus").glob("*")]) or _amd_gpus(root)


def _named(visible: str) -> int:
    """Return the number of devices that a variable names; all behind the first invalid entry are ignored."""
    count = 0
    for entry in visible.split(","):
        if entry.strip() in ("", "-1"):
            break
        count += 1
    return count


def _listed_by_driver() -> int | None:
    """Return the number of GPUs that nvidia-smi lists; None where there is no such program, or it does not work."""
    listed = _listing()
    return None if listed is None else len(listed)


def _listing() -> list[str] | None:
    """Return a line of nvidia-smi for each GPU; None where there is no such program, or it does not work."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        listing = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Below each GPU come the parts that it may be divided into, indented.
    found = [line for line in listing.stdout.splitlines() if line.startswith("GPU ")]
    return found if found or listing.returncode == 0 or "No devices" in listing.stdout else None


def _is_gpu(file: Path) -> bool:
    return re.fullmatch(r"nvidia\d+", file.name) is not None


def _can_open(file: Path) -> bool:
    """Return False where a job or container has the file, but may not use the device."""
    with suppress(OSError):
        os.close(os.open(file, os.O_RDWR))
        return True
    return False


def _amd_gpus(root: Path) -> int:
    """Return the number of AMD GPUs that the kernel's driver knows; each of its nodes with SIMD units is one."""
    if not (root / "dev/kfd").exists():
        return 0
    count = 0
    for node in (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties"):
        with suppress(OSError):
            units = re.search(r"^simd_count (\d+)", node.read_text(), re.MULTILINE)
            count += units is not None and int(units[1]) > 0
    return count
