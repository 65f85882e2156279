"""GPUs of this machine, without importing torch: their number, and how busy they are, as the driver's program says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

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


def gpu_loads() -> list[dict[str, Any]]:
    """Return for each GPU of NVIDIA that this process may use its `index`, and what is known of the rest.

    percent                     of the last moments in which it computed anything
    memory_used, memory_total   bytes

    Empty where the driver's program is missing or does not work.
    """
    query = "index,uuid,utilization.gpu,memory.used,memory.total"
    lines = _answer(f"--query-gpu={query}", "--format=csv,noheader,nounits", timeout=20) or []
    rows = [[field.strip() for field in line.split(",")] for line in lines]
    rows = [row for row in rows if len(row) == len(query.split(",")) and row[0].isdecimal()]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")][: _named(visible)]
        rows = [row for row in rows if row[0] in names or any(row[1].startswith(name) for name in names)]
    found = []
    for index, _, *numbers in rows:
        percent, *memory = map(_number, numbers)
        used, total = (mebibytes and mebibytes * (1 << 20) for mebibytes in memory)
        load = {"percent": percent, "memory_used": used, "memory_total": total}
        found.append({"index": index} | {name: value for name, value in load.items() if value is not None})
    return found


def _number(text: str) -> float | None:
    """Return a number; None for `[N/A]`, as parts of a GPU have it."""
    return float(text) if text.replace(".", "", 1).isdecimal() else None


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
    lines = _answer("--list-gpus", timeout=60)
    # Below each GPU come the parts that it may be divided into, indented.
    return None if lines is None else [line for line in lines if line.startswith("GPU ")]


def _answer(*options: str, timeout: float) -> list[str] | None:
    """Return the lines that nvidia-smi prints; None where there is no such program, or it does not work."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run([program, *options], capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    works = done.returncode == 0 or "No devices" in done.stdout or any(line.startswith("GPU ") for line in lines)
    return lines if works else None


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
