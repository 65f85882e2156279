"""The device that a rank trains on, and that a GPU which torch cannot use is told instead of being passed over."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainlib.distributed.devices import choice as devices
from trainlib.distributed.devices.choice import choose_device, choose_device_type
from trainlib.errors import UserError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set what torch can use, and how many GPUs the machine has."""

    def set_machine(usable: str | None, gpus: int = 0, count: int = 1) -> None:
        monkeypatch.setattr(devices, "_is_usable", lambda kind: kind == usable)
        monkeypatch.setattr(devices, "count_gpus", lambda: gpus)
        monkeypatch.setattr(torch, "get_device_module", lambda kind: type("", (), {"device_count": lambda: count}))

    return set_machine


@pytest.mark.parametrize(
    ("asked", "usable", "gpus", "expected"),
    [
        ("auto", None, 0, "cpu"),
        ("auto", "cuda", 2, "cuda"),
        ("auto", "xpu", 0, "xpu"),
        ("auto", "mps", 0, "cpu"),  # untried: only where it is asked for
        ("cpu", "cuda", 2, "cpu"),
        ("cpu", None, 2, "cpu"),
        ("cuda", "cuda", 2, "cuda"),
        ("mps", "mps", 0, "mps"),
        ("xpu", "xpu", 0, "xpu"),
    ],
)
def test_chooses_what_is_asked_for(machine: Any, asked: str, usable: str | None, gpus: int, expected: str) -> None:
    machine(usable, gpus)
    assert choose_device_type(asked, {}) == expected


@pytest.mark.parametrize(
    ("asked", "gpus", "message"),
    [
        ("auto", 1, r"this machine has 1 GPU, which torch .* cannot use: \S.*\. Install .*train\.device=cpu"),
        ("auto", 4, r"this machine has 4 GPUs"),
        ("cuda", 0, r"train\.device: got cuda, which torch .* cannot use here: \S"),
        ("mps", 0, r"train\.device: got mps, which torch"),
        ("xpu", 0, r"train\.device: got xpu, which torch"),
    ],
)
def test_a_device_that_torch_cannot_use_is_told_with_the_reason(
    machine: Any, asked: str, gpus: int, message: str
) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch can use the GPU of this machine, and has no reason to give")
    machine(None, gpus)
    with pytest.raises(UserError, match=message) as told:
        choose_device_type(asked, {})
    assert "\n" not in str(told.value)


def test_the_variable_asks_for_the_cpu(machine: Any) -> None:
    machine("cuda", 2)
    for asked in ("auto", "cpu"):
        assert choose_device_type(asked, {"ACCELERATE_USE_CPU": "true"}) == "cpu"
    with pytest.raises(UserError, match=r"got cuda, and the variable ACCELERATE_USE_CPU asks for the CPU"):
        choose_device_type("cuda", {"ACCELERATE_USE_CPU": "true"})


@pytest.mark.parametrize(
    ("count", "local_rank", "ranks", "expected"), [(1, 0, 1, 0), (4, 3, 4, 3), (4, 1, 2, 1), (1, 1, 2, 0), (1, 0, 8, 0)]
)
def test_each_rank_takes_its_own_device_or_the_one_it_sees(
    machine: Any, count: int, local_rank: int, ranks: int, expected: int
) -> None:
    machine("cuda", count, count)
    environ = {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(ranks)}
    assert choose_device("cuda", environ) == torch.device("cuda", expected)


def test_a_rank_without_a_device_of_its_own_is_refused(machine: Any) -> None:
    machine("cuda", 2, 2)
    with pytest.raises(UserError, match=r"4 processes were started on this machine, and rank 6 sees 2 GPUs"):
        choose_device("cuda", {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4", "RANK": "6"})
