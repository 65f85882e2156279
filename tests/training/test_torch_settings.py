"""`trainlib.fit` gives the same bits whatever torch's global settings are, and leaves them as it found them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from fit_parts import CONFIG, Net, dataset
from torch import backends

import trainlib
from trainlib.distributed.devices.torch_settings import _BACKENDS, _backend, _settings, fresh_torch_settings
from trainlib.errors import UserError

Around = Callable[[], AbstractContextManager[Any]]

BLOCKS: dict[str, Around] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "device": lambda: torch.device("meta"),
    "anomaly": lambda: torch.autograd.detect_anomaly(check_nan=True),
    "mkldnn off": lambda: backends.mkldnn.flags(enabled=False),
    "cudnn off": lambda: backends.cudnn.flags(enabled=False, deterministic=True),
}
CALLS: dict[str, Callable[[], Any]] = {
    "float64": lambda: torch.set_default_dtype(torch.float64),
    "bfloat16": lambda: torch.set_default_dtype(torch.bfloat16),
    "grad off": lambda: torch.set_grad_enabled(False),
    "default device": lambda: torch.set_default_device("meta"),
    "deterministic": lambda: torch.set_deterministic_debug_mode("error"),
    "threads": lambda: torch.set_num_threads(3),
    "seed": lambda: torch.manual_seed(12345),
    "matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "precision": lambda: setattr(backends, "fp32_precision", "bf16"),
    "flush": lambda: torch.set_flush_denormal(True),
}


@pytest.fixture(autouse=True)
def as_before(workdir: Path) -> Any:
    """Undo what a test changes, with the code under test, which the tests of the snapshot check."""
    device = torch.get_default_device()
    with fresh_torch_settings():
        yield
        torch.set_default_device(None)
    assert torch.get_default_device() == device


def snapshot() -> list[Any]:
    values = [setting.get() for setting in [*_settings(), *map(_backend, _BACKENDS)]]
    plain = [value.tolist() if isinstance(value, torch.Tensor) else value for value in values]
    return [*plain, torch.get_default_device(), torch.is_inference_mode_enabled(), torch.get_float32_matmul_precision()]


def fit(precision: str = "fp32", **parts: Any) -> str:
    overrides = ["train.steps=3", "name=other", f"train.precision={precision}", "checkpoint.best=null"]
    given: dict[str, Any] = {"model": Net, "dataset": DATASET}
    run = trainlib.fit(CONFIG, *overrides, fresh=True, **given | parts)
    return str(run.summary()["weights_sha256"])


DATASET = dataset()
EXPECTED: dict[str, str] = {}


def expected(precision: str) -> str:
    if precision not in EXPECTED:
        EXPECTED[precision] = fit(precision)
    return EXPECTED[precision]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", [*BLOCKS, *CALLS])
def test_the_same_bits_and_the_settings_stay(name: str) -> None:
    bits = expected("fp32")
    with BLOCKS.get(name, nullcontext)():
        CALLS.get(name, bool)()
        before = snapshot()
        assert fit() == bits
        assert snapshot() == before


def test_narrow_copies_of_weights_are_not_kept_inside_of_a_callers_autocast() -> None:
    bits = expected("bf16")
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", torch.bfloat16):
        assert fit("bf16") == bits
        assert torch.autocast_increment_nesting() == 3
        torch.autocast_decrement_nesting()


def test_an_accelerator_of_the_callers_is_set_aside_and_restored() -> None:
    bits = expected("fp32")
    with fresh_torch_settings():
        accelerator = Accelerator(cpu=True, mixed_precision="bf16")
        assert fit() == bits
        assert accelerator.mixed_precision == "bf16"
        assert accelerator.num_processes == 1


def fails(num_classes: int) -> torch.nn.Module:
    raise UserError("no")


def test_the_settings_stay_after_an_error() -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(3)
    torch.manual_seed(7)
    before = snapshot()
    with pytest.raises(UserError, match="no"):
        fit(model=fails)
    assert snapshot() == before


@pytest.mark.slow
def test_fresh_settings_are_those_of_a_process_that_has_just_started() -> None:
    program = (
        "from trainlib.distributed.devices.torch_settings import *\n"
        "from trainlib.distributed.devices.torch_settings import _settings, _backend, _BACKENDS\n"
        "for s in [*_settings(), *map(_backend, _BACKENDS)]:\n"
        "    assert s.fresh is KEEP or s.get() == s.fresh, (s, s.get())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
