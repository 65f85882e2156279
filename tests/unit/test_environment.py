"""What a run ran on, and whether that makes a resumed run differ."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import trainlib
from trainlib.distributed.devices import hardware
from trainlib.runs.machine import environment

FACTS = environment.bits(hardware.describe(torch.device("cpu"), 2))


def test_facts_are_plain_and_hold_no_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-secret")
    described = json.dumps(hardware.describe(torch.device("cpu"), 1))
    assert "canary-secret" not in described
    assert torch.__version__.split("+")[0] in described
    assert os.environ["WANDB_API_KEY"] == "canary-secret"


def test_the_code_that_is_hashed_is_the_whole_package() -> None:
    """Wherever in the package the function lives: a change in any room changes the digest of the code."""
    assert Path(trainlib.__file__).parent.samefile(environment.PACKAGE)


def test_the_same_machine_resumes_exactly() -> None:
    assert environment.resume_report(json.loads(json.dumps(FACTS)), FACTS) == "exact"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("world_size", 1, "world_size was 1, is 2"),
        ("num_threads", 77, "num_threads was 77, is"),
        ("device", "cuda", "device was cuda, is cpu"),
    ],
)
def test_what_differs_is_named(name: str, value: object, says: str) -> None:
    report = environment.resume_report(FACTS | {name: value}, FACTS)
    assert report.startswith("not bitwise")
    assert says in report


def test_another_world_size_is_exact_in_elastic_mode_alone() -> None:
    then = FACTS | {"world_size": 4}
    expected = "exact, with 2 processes as with the 4 before (elastic)"
    assert environment.resume_report(then, FACTS, elastic=True) == expected
    alone = environment.resume_report(then, FACTS | {"world_size": 1}, elastic=True)
    assert alone == "exact, with 1 process as with the 4 before (elastic)"
    assert environment.resume_report(then | {"num_threads": 77}, FACTS, elastic=True).startswith("not bitwise")


def test_a_schedule_that_followed_a_longer_run_is_not_exact() -> None:
    report = environment.resume_report(FACTS, FACTS, has_followed=True)
    assert report.startswith("not bitwise what a run of this length gives: the learning rates so far are those of a")
    report = environment.resume_report(FACTS | {"num_threads": 77}, FACTS, has_followed=True)
    assert "num_threads was 77, is" in report


def test_a_version_that_was_not_recorded_then_is_no_change() -> None:
    """Only later versions of this software record that of the decoder of HEIC."""
    then = FACTS["versions"] | {"pillow-heif": "0.1"}
    assert "pillow-heif was 0.1, is" in environment.resume_report(FACTS | {"versions": then}, FACTS)
    del then["pillow-heif"]
    assert environment.resume_report(FACTS | {"versions": then}, FACTS) == "exact"


def test_another_version_is_named() -> None:
    then = FACTS | {"versions": FACTS["versions"] | {"torch": "1.0"}}
    assert "torch was 1.0, is" in environment.resume_report(then, FACTS)
    assert environment.resume_report(FACTS | {"versions": FACTS["versions"] | {"wandb": "0"}}, FACTS) == "exact"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ONEDNN_MAX_CPU_ISA", "SSE41"),
        ("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
        ("MKL_CBWR", "COMPATIBLE"),
        ("NVIDIA_TF32_OVERRIDE", "0"),
    ],
)
def test_a_variable_by_which_libraries_choose_other_kernels_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = {key: fact for key, fact in FACTS.items() if key != "kernel_variables"}  # an older checkpoint
    assert environment.resume_report(without, FACTS) == "exact"
    monkeypatch.setenv(name, value)
    now = environment.bits(hardware.describe(torch.device("cpu"), 2))
    assert f"kernel_variables was None, is {name}={value} (kernels are others)" in environment.resume_report(FACTS, now)
    assert environment.resume_report(now, now) == "exact"
