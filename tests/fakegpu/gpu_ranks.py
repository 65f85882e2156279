"""Ranks on emulated GPUs: a server process on the stand-in for CUDA, which runs functions of tests as ranks."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ranks

HERE = Path(__file__).parent
VARIABLES = ("FAKE_CUDA_DEVICES", "FAKE_CUDA_BYTES", "FAKE_CUDA_DRIVER")


class Gpus:
    """Emulated GPUs: for functions that run as ranks on them, and for whole commands.

    folder   the built libraries
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._server: subprocess.Popen[str] | None = None

    def environment(self, **variables: str) -> dict[str, str]:
        """Return the environment of a command on the stand-in; in its ranks, numbers are right."""
        inherited = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
        python_path = [str(HERE / "site"), str(HERE), str(HERE.parent / "support"), inherited.get("PYTHONPATH", "")]
        return inherited | {
            "LD_PRELOAD": f"{self._folder}/libfakecuda.so:{self._folder}/libfakenccl.so",
            "LD_LIBRARY_PATH": f"{self._folder}/lib",
            "PATH": f"{HERE / 'bin'}:{inherited['PATH']}",
            "PYTHONPATH": ":".join(filter(None, python_path)),
            "FAKEGPU": str(self._folder),
            "FAKE_CUDA_EMULATE": "1",
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_NATIVE_JIT": "1",  # kernels in Triton, which would be compiled for the GPU
            **variables,
        }

    def run(self, function: str, *args: object, world_size: int, cwd: Path, **options: object) -> list[int]:
        """Run a function, `module:name`, as so many ranks, each on a GPU of its own; return their exit codes.

        What they print goes to files in `cwd` (see `ranks.console`). Options: `emulate=False` for kernels that do
        nothing, and the variables of the stand-in.
        """
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, __file__],
                env=self.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        options = {"FAKE_CUDA_DEVICES": str(world_size)} | options
        print(json.dumps([function, args, world_size, str(cwd), options]), file=self._server.stdin, flush=True)
        codes: list[int] = json.loads(self._server.stdout.readline())
        return codes

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            with self._server:  # which closes its pipes and waits for it
                pass


def run_on_cpu(function: str, *args: object, world_size: int, cwd: Path) -> list[int]:
    """Run a function, `module:name`, as so many ranks on the CPU; return their exit codes."""
    return ranks.run(call, function, args, world_size=world_size, cwd=cwd)


def call(function: str, args: tuple[object, ...]) -> Any:
    """Call a function that is given as `module:name`."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*args)


def stand_in() -> ctypes.CDLL:
    """Return the library whose `fakecuda_` functions read counters and set the memory; in a rank on it."""
    return ctypes.CDLL(f"{os.environ['FAKEGPU']}/libfakecuda.so")


def _on_gpu(function: str, args: tuple[object, ...], options: Mapping[str, Any]) -> Any:
    del os.environ["ACCELERATE_USE_CPU"]
    os.environ.update({name: str(value) for name, value in options.items() if name in VARIABLES})
    if options.get("emulate", True):
        import emulation

        emulation.enter()
    return call(function, args)


def _serve() -> None:
    for line in sys.stdin:
        function, args, world_size, cwd, options = json.loads(line)
        codes = ranks.run(_on_gpu, function, tuple(args), options, world_size=world_size, cwd=Path(cwd))
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    import gpu_ranks  # under this name, the ranks find its functions too

    gpu_ranks._serve()
