"""The benchmark for a GPU comes to its end on an emulated one, so that no minute of a real one is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gpu_ranks import Gpus
from paths import REPOSITORY
from soak import only_in_soak

pytestmark = pytest.mark.slow


@only_in_soak
def test_the_benchmark_comes_to_its_end(gpus: Gpus, tmp_path: Path) -> None:
    environment = gpus.environment(PYTHONPATH="", TRAINLAUNCH_NUM_THREADS="1")
    del environment["FAKE_CUDA_EMULATE"]  # kernels that do nothing take no time
    options = ["--quick", "--budget", "60m", "--parts", "waits,loops,vgg16", "--batch-sizes", "16"]
    options += ["--vgg-batch-size", "2", "--arms", "Accelerate, tensors", "--results", str(tmp_path / "results")]
    command = [sys.executable, "-m", "bench.gpu.run", *options]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = (tmp_path / "results" / "table.md").read_text()
    assert "Fake H100" in table
    assert "failed" not in table
    assert "| waits for the GPU in a step |" in table  # more than none: kernels that do nothing do not look fused
    assert "| batches of 16: ours / Accelerate, tensors |" in table
    assert "| VGG16: ours / Accelerate, tensors |" in table
    assert "| ResNet-50: ours / Accelerate, tensors |" in table
