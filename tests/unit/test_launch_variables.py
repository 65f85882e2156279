"""Environment variables of a run: wrong values are the user's mistake, and Accelerate's are left out."""

from __future__ import annotations

import os

import pytest

from trainlib.config import TrainConfig
from trainlib.distributed import process_group
from trainlib.errors import UserError
from trainlib.runs.machine import launch_variables


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("TRAINLAUNCH_NUM_THREADS", value) for value in ("abc", "0", "-1", "1.5", "1e3", "99999", "٣", "9" * 30)],
        *[("TRAINLAUNCH_NODE_SECONDS", value) for value in ("soon", "0", "-3", "inf", "nan")],
        ("TRAINLAUNCH_WORLD_SIZE", "two"),
        ("TRAINLAUNCH_END_TIME", "tomorrow"),
        *[("TRAINLAUNCH_STOP_AT", value) for value in ("3", "0ep", "ep", "1.5ep", "-1st", "3 ep", "9" * 11 + "st")],
        ("RANK", "-1"),
        ("WORLD_SIZE", "0"),
        ("LOCAL_WORLD_SIZE", "x"),
        *[("ACCELERATE_USE_CPU", value) for value in ("maybe", "2", "cpu")],
        *[(f"ACCELERATE_USE_{name}", "true") for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")],
    ],
)
def test_a_wrong_value_is_told_with_its_name(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^{name}"):
        launch_variables.check({name: value})


@pytest.mark.parametrize(
    "environment",
    [
        {},
        dict.fromkeys(["TRAINLAUNCH_NUM_THREADS", "TRAINLAUNCH_END_TIME", "ACCELERATE_USE_CPU", "RANK"], ""),
        {
            "TRAINLAUNCH_NUM_THREADS": " 8 ",
            "TRAINLAUNCH_NODE_SECONDS": "2.5",
            "TRAINLAUNCH_STOP_AT": "3ep",
            "ACCELERATE_USE_CPU": "True",
        },
        {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_USE_DEEPSPEED": "0", "ACCELERATE_MIXED_PRECISION": "fp16"},
    ],
)
def test_right_values(environment: dict[str, str]) -> None:
    launch_variables.check(environment)


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("YES", True), ("t", True), ("off", False), ("", False)])
def test_the_cpu_is_asked_for_as_accelerate_reads_it(value: str, expected: bool) -> None:
    assert launch_variables.uses_cpu({"ACCELERATE_USE_CPU": value}) is expected


FOREIGN = {
    "ACCELERATE_TORCH_DEVICE": "cuda",
    "ACCELERATE_MIXED_PRECISION": "fp16",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_DEBUG_MODE": "true",
    "ACCELERATE_CPU_AFFINITY": "true",
}


def test_accelerate_does_not_see_its_variables(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level("WARNING", logger="trainlib"), process_group.joined(TrainConfig()) as accelerator:
        assert accelerator.device.type == "cpu" or "CUDA_VISIBLE_DEVICES" not in os.environ
        assert accelerator.mixed_precision == "no"
        assert accelerator.gradient_accumulation_steps == 1
    assert FOREIGN.items() <= os.environ.items()
    assert "ACCELERATE_TORCH_DEVICE=cuda" in caplog.text
    assert "ACCELERATE_MIXED_PRECISION=fp16" in caplog.text
    assert "ACCELERATE_CPU_AFFINITY=true" in caplog.text


def test_what_accelerate_launch_sets_unasked_is_not_worth_a_word() -> None:
    unasked = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_CPU_AFFINITY": "false",
    }
    assert launch_variables.not_obeyed(unasked) == []
    assert launch_variables.of_accelerate(unasked | {"ACCELERATE_USE_CPU": "1"}) == sorted(unasked)
