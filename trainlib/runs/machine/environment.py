"""The software and hardware facts that decide a run's bits, and how a resumed run differs where they changed."""

from __future__ import annotations

import functools
import hashlib
import platform
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# What decides the bits of a step beside the configuration, and what a change of it changes.
DECIDES_BITS = {
    "code": "the code of trainlaunch, or of what a part of one's own uses, is other",
    "world_size": "gradients are summed in another order, and dropout draws other masks",
    "num_threads": "kernels add in another order",
    "device": "kernels are others",
    "device_name": "kernels may be others",
    "cpu_capability": "kernels are others",
    "kernel_variables": "kernels are others",
}
# Variables by which libraries choose other kernels, or compute with fewer bits. Of the number of threads and of torch's
# own ATEN_CPU_CAPABILITY others of the facts tell.
KERNEL_VARIABLES = (
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "MKL_CBWR",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
UNCHANGED = "samples, their order, augmentation and learning rates are as they would have been"
FOLLOWED = "the learning rates so far are those of a shorter one; samples, their order and augmentation are the same"

PACKAGE = Path(__file__).resolve().parents[2]  # the folder trainlib
COMMIT_FILE = "COMMIT"  # beside the packages, in a copy of the code that is outside version control
PACKAGES = (
    *("trainlaunch", "torch", "torchvision", "accelerate", "numpy", "pillow", "safetensors", "wandb"),
    "pillow-heif",  # decodes HEIC, where it is installed
)


def versions(*more: str) -> dict[str, str | None]:
    """Return the installed version of Python and of each package that decides bits; None for a missing package.

    more   packages that decide bits of this run alone, such as the one that builds its model
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def kernel_variables(environ: Mapping[str, str]) -> str | None:
    """Return those of KERNEL_VARIABLES that are set, with their values; None, as in older checkpoints, if none is."""
    return ", ".join(f"{name}={environ[name]}" for name in KERNEL_VARIABLES if name in environ) or None


def bits(facts: dict[str, Any]) -> dict[str, Any]:
    """Return those of the facts that decide bits, for a checkpoint to keep and `resume_report` to compare.

    facts   as `trainlib.distributed.devices.hardware.describe` returns them
    """
    return {name: facts[name] for name in DECIDES_BITS} | {"versions": facts["versions"]}


def bit_changes(then: Mapping[str, Any], now: Mapping[str, Any], *, ignored: Collection[str] = ()) -> list[str]:
    """Return a phrase for each way in which two results of `bits` differ, with what that changes."""
    changes = [
        f"{name} was {_short(then.get(name))}, is {_short(now[name])} ({effect})"
        for name, effect in DECIDES_BITS.items()
        if then.get(name) != now[name] and name not in ignored
    ]
    before, after = then.get("versions") or {}, now["versions"]
    return changes + [
        f"{name} was {before.get(name)}, is {after.get(name)} (kernels may be others)"
        for name in sorted(set(before or after) - {"wandb", "trainlaunch"})  # others were not recorded then
        if before.get(name) != after.get(name)
    ]


def resume_report(
    then: Mapping[str, Any], now: Mapping[str, Any], *, elastic: bool = False, has_followed: bool = False
) -> str:
    """Return `exact`, or what differs between two results of `bits` and what that changes, in one line.

    elastic        the run is in elastic mode, where another world size changes nothing
    has_followed   the run has become longer, and its learning-rate schedule with it
    """
    changes = bit_changes(then, now, ignored=["world_size"] if elastic else [])
    world_size = now["world_size"]
    if has_followed:
        return f"not bitwise what a run of this length gives: {'; '.join([*changes, FOLLOWED])}"
    if not changes and then.get("world_size") != world_size:
        plural = "es" if world_size > 1 else ""
        return f"exact, with {world_size} process{plural} as with the {then.get('world_size')} before (elastic)"
    if not changes:
        return "exact"
    return f"not bitwise what an uninterrupted run gives: {'; '.join(changes)}; {UNCHANGED}"


def _short(value: Any) -> Any:
    """Return the first digits of a SHA-256, and any other value as it is."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else value


def with_own_code(code: str, own: str) -> str:
    """Return a digest of the code of trainlib and that of parts given in Python; without these it is the first."""
    return hashlib.sha256(f"{code}\0{own}".encode(errors="surrogatepass")).hexdigest() if own else code


@functools.cache
def code_sha256() -> str:
    """Return the SHA-256, in hex, over the names and bytes of all Python files of trainlib."""
    digest = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(PACKAGE).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def processor() -> str:
    """Return the processor's model, as Linux tells it, or else what Python knows of it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Processor", "CPU part")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """Return the commit of this code, with `+changes` where files differ from it; None outside a git checkout.

    A copy of the code that `launch submit` made has the commit in a file COMMIT beside the packages.
    """
    with suppress(OSError):
        return (PACKAGE.parent / COMMIT_FILE).read_text().strip()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        if not (Path(git("rev-parse", "--show-toplevel")) / "trainlib").samefile(PACKAGE):
            return None  # installed into somebody else's checkout
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
