"""Building the stand-in for CUDA with g++, against the headers that torch's CUDA wheels install."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import re
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

SOURCES = Path(__file__).parent / "stand_in"
# torch's libraries with references into CUDA's; those that a torch lacks are passed over.
LIBRARIES = ("c10_cuda", "torch_cuda", "torch_python", "torch_cpu", "torch_cuda_linalg", "torch_nvshmem")
RUNTIME = re.compile(r"(__cuda|cuda|cublas|cudnn)\w+")
DRIVER = re.compile(r"cu[A-Z]\w+")
MATRIX_PRODUCTS = re.compile(r"cublas.*([gG]emm|gemv|dot|Dot)|cudnnBatchNormalization")
# Functions of the driver's library whose answers torch looks at.
ANSWERING = """
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) { if (flags) *flags = 0; *active = 1; return 0; }
int cuCtxGetCurrent(void** context) { *context = (void*)1; return 0; }
int cuGetErrorString(int, const char** text) { *text = "an error of the stand-in for CUDA"; return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, void*, int, unsigned long) { *n = 2; return 0; }
"""


def installed_torch() -> Path | None:
    """Return the site-packages folder of an installed CUDA build of torch; None for other builds."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    site = Path(spec.origin).parents[1]
    return site if (site / "torch/lib/libtorch_cuda.so").exists() and _includes(site) else None


def build(site: Path) -> Path:
    """Return the folder of the built libraries; they are built anew where their sources or torch have changed.

    libfakecuda.so and libfakenccl.so are for LD_PRELOAD, lib/libcuda.so.1 is found by LD_LIBRARY_PATH.
    """
    digest = hashlib.sha256((site / "torch/version.py").read_bytes() + str(site).encode())
    for source in (Path(__file__), *sorted(path for path in SOURCES.rglob("*") if path.is_file())):
        digest.update(source.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"trainlaunch-fakegpu-{digest.hexdigest()[:16]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several workers of pytest come here at once
        if not (folder / "done").exists():
            _compile(site, folder)
            (folder / "done").touch()
    return folder


def _compile(site: Path, folder: Path) -> None:
    (folder / "lib").mkdir(exist_ok=True)
    include = [word for path in _includes(site) for word in ("-I", str(path))]
    libraries = [site / f"torch/lib/lib{name}.so" for name in LIBRARIES]
    wanted = _undefined(RUNTIME, (path for path in libraries if path.exists()))
    # Weak, so that those that the sources define take their place.
    stubs = [_stub(name) for name in sorted(wanted)]
    (folder / "stubs.cpp").write_text('extern "C" {\nvoid fakecuda_mark(const char*);\n' + "\n".join(stubs) + "\n}\n")
    driver = _undefined(DRIVER, [site / "torch/lib/libcaffe2_nvrtc.so"]) - set(re.findall(r"cu[A-Z]\w+", ANSWERING))
    plain = "".join(f"int {name}() {{ return 0; }}\n" for name in sorted(driver))
    (folder / "driver.cpp").write_text(f'extern "C" {{{ANSWERING}{plain}}}\n')
    compiler = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-I", str(SOURCES), *include]
    cuda = [str(SOURCES / "memory.cpp"), str(SOURCES / "runtime.cpp"), str(SOURCES / "libraries.cpp"), "stubs.cpp"]
    nccl = [str(SOURCES / "nccl.cpp"), "-L.", "-lfakecuda", "-Wl,-rpath,$ORIGIN"]
    for words in (
        [*cuda, "-o", "libfakecuda.so"],
        [*nccl, "-o", "libfakenccl.so"],
        ["driver.cpp", "-Wl,-soname,libcuda.so.1", "-o", "lib/libcuda.so.1"],
    ):
        subprocess.run([*compiler, *words], cwd=folder, check=True)


def _includes(site: Path) -> list[Path]:
    folders = [*site.glob("nvidia/*/include"), *site.glob("triton/backends/nvidia/include")]
    return folders if any((folder / "cuda_runtime_api.h").exists() for folder in folders) else []


def _undefined(pattern: re.Pattern[str], libraries: Iterable[Path]) -> set[str]:
    """Return the symbols of this form that libraries want from others."""
    found: set[str] = set()
    for library in libraries:
        listing = subprocess.run(
            ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
        )
        names = (line.split()[-1].partition("@")[0] for line in listing.stdout.splitlines())
        found.update(name for name in names if pattern.fullmatch(name))
    return found


def _stub(name: str) -> str:
    """Return a function that counts its calls and does nothing; what computes counts as a launch as well."""
    launch = ' fakecuda_mark("launch");' if MATRIX_PRODUCTS.match(name) else ""
    return f'__attribute__((weak)) int {name}() {{ fakecuda_mark("{name}");{launch} return 0; }}'
