"""Compiling the model: the same training up to rounding, the same bits after a resume, and only where it pays."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ranks
import torch
from needs import need
from parts import build_trainer, make_dataset, resolved
from torch import nn

from trainlib.distributed import process_group
from trainlib.errors import UserError
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.directory import RunDirectory
from trainlib.training.tuning import autotune

TRAINING = [
    "quickstart",
    "name=run",
    "data={name: synthetic, limit: 70, val_fraction: 0.1, augment: {flip: true}}",
    "model={name: cifar10_cnn}",
    "optimizer={name: SGD, lr: 0.01, momentum: 0.9}",
    "scheduler=null",
    "checkpoint={every: 2st}",
    "tracking={log_every: 1, tensorboard: false, wandb: {mode: disabled}}",
]
LENGTH = "train={steps: 4, batch_size: 20, compile: true}"


def digest(folder: Path) -> str:
    value: str = RunDirectory(folder / "runs/run").summary()["weights_sha256"]
    return value


def in_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.slow
def test_a_compiled_model_resumes_bitwise_and_trains_what_a_plain_one_does(tmp_path: Path) -> None:
    need("g++")
    whole, halves, plain = (in_folder(tmp_path / name) for name in ("whole", "halves", "plain"))
    assert ranks.train([*TRAINING, LENGTH], cwd=whole) == [0], ranks.console(whole)
    assert "compiling the model took" in ranks.console(whole)
    assert ranks.train([*TRAINING, LENGTH.replace("4", "2")], cwd=halves) == [0]
    assert ranks.train([*TRAINING, LENGTH, "--resume"], cwd=halves) == [0], ranks.console(halves)
    assert digest(halves) == digest(whole)
    assert ranks.train([*TRAINING, LENGTH.replace("true", "false")], cwd=plain) == [0]
    weights = [nn_state(folder) for folder in (whole, plain)]
    assert weights[0].keys() == weights[1].keys()  # no `_orig_mod.` in any name
    assert all(torch.allclose(weights[0][name], weights[1][name], rtol=1e-3, atol=1e-5) for name in weights[0])


def nn_state(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "runs/run/checkpoints/step-00000004/model.safetensors")


class Module(nn.Module):
    """Takes as long as it is told to, compiled or not."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, num_classes)

    def forward(self, images_NCHW: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(images_NCHW.flatten(1))
        return logits


@pytest.mark.parametrize(
    ("steps_left", "eager", "compiled", "pays"),
    [(10_000, 0.02, 0.01, True), (10, 0.02, 0.01, False), (10_000, 0.01, 0.02, False)],
)
def test_auto_compiles_where_it_saves_more_than_it_takes(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    steps_left: int,
    eager: float,
    compiled: float,
    pays: bool,
) -> None:
    times = iter([eager, compiled])
    clock = iter([0.0, 60.0])  # a minute of compiling: 6,000 steps of 10 ms less pay for it
    config = resolved({"data": {"name": "synthetic", "val_fraction": 0}, "train": {"steps": 1, "batch_size": 8}})
    with process_group.joined(config.train) as accelerator, caplog.at_level(logging.INFO, "trainlib"):
        trainer = build_trainer(config, make_dataset(16), accelerator, None, CustomParts(model=Module))
        monkeypatch.setattr(autotune, "_seconds", lambda *_: next(times))
        monkeypatch.setattr(autotune, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
        monkeypatch.setattr(nn.Module, "compile", fake_compile)
        assert autotune.compile_model(trainer.state, torch.zeros(8, 3, 32, 32), "auto", steps_left) is pays
        assert (trainer.state.local_model._compiled_call_impl is not None) is pays
    (record,) = [record.message for record in caplog.records if "compiling" in record.message]
    assert "compiling the model took 60.0 s" in record
    assert ("does not pay" in record) is not pays


def fake_compile(self: nn.Module, **_: Any) -> None:
    self._compiled_call_impl = self._call_impl


def refused(self: nn.Module, **_: Any) -> None:
    raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nand much more")


@pytest.mark.parametrize("choice", [True, "auto"])
def test_where_torch_cannot_compile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, choice: Any
) -> None:
    monkeypatch.setattr(nn.Module, "compile", refused)
    config = resolved({"data": {"name": "synthetic", "val_fraction": 0}, "train": {"steps": 1, "batch_size": 8}})
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, make_dataset(16), accelerator, None, CustomParts(model=Module))
        images_NCHW = torch.zeros(8, 3, 32, 32)
        if choice is True:
            with pytest.raises(
                UserError, match=r"^train\.compile: .*: InvalidCxxCompiler: No working C\+\+ compiler found$"
            ):
                autotune.compile_model(trainer.state, images_NCHW, choice, 100)
        else:
            assert autotune.compile_model(trainer.state, images_NCHW, choice, 100) is False
            assert "the model is not compiled: InvalidCxxCompiler" in caplog.text
        assert trainer.state.local_model(images_NCHW).shape == (8, 10)


def _compile_on_rank_0_alone(choice: Any) -> int:
    config = resolved({"data": {"name": "synthetic", "val_fraction": 0}, "train": {"steps": 1, "batch_size": 8}})
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, make_dataset(16), accelerator, None, CustomParts(model=Module))
        nn.Module.compile = refused if accelerator.process_index else fake_compile  # type: ignore[method-assign]
        assert autotune.compile_model(trainer.state, torch.zeros(4, 3, 32, 32), choice, 10**9) is False
        assert trainer.state.local_model._compiled_call_impl is None
    return 0


@pytest.mark.parametrize(("choice", "code"), [("auto", 0), (True, 1)])
def test_where_one_rank_cannot_compile_none_does(tmp_path: Path, choice: Any, code: int) -> None:
    assert ranks.run(_compile_on_rank_0_alone, choice, world_size=2, cwd=tmp_path) == [code] * 2
    assert ("train.compile: torch cannot compile" in ranks.console(tmp_path)) is bool(code)


def test_a_decision_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured at the first start holds after a resume, whatever would be measured then."""
    asked: list[Any] = []

    def yes(state: Any, images: Any, choice: Any, left: Any) -> bool:
        asked.append(choice)
        return True

    monkeypatch.setattr(autotune, "compile_model", yes)
    config = resolved(
        {"data": {"name": "synthetic", "val_fraction": 0}, "train": {"steps": 1, "batch_size": 8, "compile": "auto"}}
    )
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, make_dataset(16), accelerator, None, CustomParts(model=Module))
        assert trainer.progress.state_dict(torch.device("cpu"))["compiled"] is True
        trainer.progress.compiled = False
        autotune.autotune(config.train, trainer.state, trainer.samples, trainer.progress, 1)
    assert asked == ["auto", False]


@pytest.mark.parametrize(
    ("reproducibility", "device", "expected"),
    [
        ("exact", "cuda", {"deterministic": True}),
        ("elastic", "cuda", {"deterministic": True}),
        ("fast", "cuda", None),
        ("exact", "cpu", None),
    ],
)
def test_kernels_are_not_chosen_by_timing_where_bits_are_to_be_the_same(
    reproducibility: str, device: str, expected: dict[str, bool] | None
) -> None:
    train = {"steps": 1, "batch_size": 8, "reproducibility": reproducibility}
    config = resolved({"data": {"name": "synthetic", "val_fraction": 0}, "train": train})
    with process_group.joined(config.train):
        assert autotune._compiler_options(torch.device(device)) == expected
    from torch._inductor import config as options

    assert hasattr(options, "deterministic")
