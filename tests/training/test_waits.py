"""What a step does not wait for: the device, in each step, and modules that nothing needs, before the first one.

No GPU is needed for it: what would wait for one is to ask for the value of a tensor, which is an operation like any
other, and fused optimizers heed the flag that a gradient is not finite on CPUs as well.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import Rows, build_trainer, make_dataset, resolved
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trainlib.distributed import process_group
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.errors import NonFiniteError
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.training.hooks import HookList, TrackerHook
from trainlib.training.step.accumulator import MetricAccumulator
from trainlib.training.step.train_step import train_step
from trainlib.training.step.update import CheckedUpdate, DeviceCheckedUpdate, UpdateStatus, rates_of_float32
from trainlib.training.trainer import Trainer

TRAINING = {
    "data": {"name": "synthetic", "val_fraction": 0.0, "augment": {"flip": True, "crop_padding": 2}},
    "scheduler": {"name": "LinearLR", "total_iters": 8, "interval": "step"},
    "train": {"epochs": 2, "batch_size": 20},
    "tracking": {"log_every": 3},
}
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class Waits(TorchDispatchMode):
    """Counts the operations that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name in WAITS:
            self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


class WithRatesOfFloat32(CheckedUpdate):
    """Steps with the learning rates of a step that nobody waits for."""

    def apply(self, grad_norm: Tensor, losses: Sequence[Tensor]) -> tuple[UpdateStatus, Sequence[float]]:
        with rates_of_float32(self.stepped):
            return super().apply(grad_norm, losses)


@contextmanager
def made(optimizer: dict[str, Any], *, unseen: bool, custom: CustomParts | None = None) -> Iterator[Trainer]:
    config = resolved(TRAINING | {"optimizer": optimizer})
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, make_dataset(70), accelerator, None, custom or CustomParts())
        chosen = DeviceCheckedUpdate if unseen else WithRatesOfFloat32
        trainer.state = replace(trainer.state, update=chosen(trainer.state.optimizer.optimizer))
        trainer.accumulator = MetricAccumulator(trainer.state, trainer.progress, "stop", 0)
        yield trainer


OPTIMIZERS = (
    {"name": "SGD", "lr": 0.01, "momentum": 0.9, "fused": True},
    {"name": "Adam", "lr": 0.001, "fused": True},
    {"name": "AdamW", "lr": 0.001, "fused": True},
    {"name": "Adagrad", "lr": 0.01, "fused": True},
    {"name": "MuonSGD", "lr": 0.02, "normalize_weights": True},
)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer["name"])
def test_a_step_asks_for_no_value(optimizer: dict[str, Any], clip: float | None) -> None:
    for unseen in (True, False):
        with made(optimizer, unseen=unseen) as trainer:
            state = replace(trainer.state, clip_grad_norm=clip)
            prepared = trainer.samples.train.train_batches(trainer.plan.batches(0)[:3], 0, trainer.samples.augmentation)
            with Waits() as waits:
                for step in range(3):
                    trainer.accumulator.add(step, train_step(state, step, next(prepared), 20.0))
                    trainer.schedule.after_step()
            assert bool(waits.names) is not unseen  # else what is counted here is not what waits


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer["name"])
def test_steps_that_are_read_later_are_the_same_steps(optimizer: dict[str, Any]) -> None:
    results = []
    for unseen in (True, False):
        with made(optimizer, unseen=unseen) as trainer:
            rows = Rows()
            trainer.hooks = HookList([TrackerHook(rows)])
            assert trainer.run(StopConsensus(StopFlag(), None))
            results.append(
                (rows.without_times(), [parameter.detach().clone() for parameter in trainer.state.parameters])
            )
    assert [row["step"] for row in results[0][0]] == [row["step"] for row in results[1][0]]
    assert optimizer["name"] == "MuonSGD" or results[0][0] == results[1][0]
    # MuonSGD steps biases with torch's fused SGD, which rounds otherwise on CPUs, only where it heeds the flag.
    same = torch.allclose if optimizer["name"] == "MuonSGD" else torch.equal
    assert all(same(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer["name"])
def test_a_bad_step_that_is_noticed_later_has_changed_nothing(optimizer: dict[str, Any], value: float) -> None:
    """The second step's loss is not finite, and the third one's row is the first that is read."""
    weights = []
    for bad in (True, False):
        losses = _Losses(value if bad else None)
        with made(optimizer, unseen=True, custom=CustomParts(loss=losses)) as trainer:
            if bad:
                losses.in_training = True
                with pytest.raises(NonFiniteError, match=f"^step 2 was not applied: the loss is {value} on rank 0"):
                    trainer.run(StopConsensus(StopFlag(), None))
                assert losses.calls >= 3
                assert trainer.progress.step == 1
            else:
                [micro_batches] = trainer.samples.train.train_batches(
                    trainer.plan.batches(0)[:1], 0, trainer.samples.augmentation
                )
                train_step(trainer.state, 0, micro_batches, 20.0)
            weights.append([parameter.detach().clone() for parameter in trainer.state.parameters])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class _Losses:
    """Cross entropy; that of the second step is not finite."""

    def __init__(self, value: float | None):
        self.value, self.calls, self.in_training = value, 0, False

    def __call__(self, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
        losses_N = torch.nn.functional.cross_entropy(logits_NC, labels_N, reduction="none")
        if self.in_training:
            self.calls += 1
            if self.calls == 2 and self.value is not None:
                return losses_N * self.value
        return losses_N


def test_a_gpu_gets_fused_kernels_and_a_cpu_keeps_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what is chosen for one, and that a state of another device does not change the choice."""
    from trainlib.models.optimizers import build
    from trainlib.models.optimizers.build import build_optimizer

    asked = build.has_fused_kernel
    cpu = torch.device("cpu")  # answers in place of the GPU that is not there
    assert [asked(name, {"lr": 0.1}, cpu) for name in ("AdamW", "RMSprop")] == [True, False]
    monkeypatch.setattr(build, "has_fused_kernel", lambda name, options, device: asked(name, options, cpu))

    config = resolved(TRAINING | {"optimizer": {"name": "AdamW", "lr": 0.001}})
    module = torch.nn.Linear(4, 4)
    on_gpu, on_cpu = (build_optimizer(config.optimizer, module, device=torch.device(name)) for name in ("cuda", "cpu"))
    assert [group["fused"] for group in (*on_gpu.param_groups, *on_cpu.param_groups)] == [True, None]
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, make_dataset(40), accelerator, None)
        saved = trainer.state.optimizer.optimizer.state_dict()
        for group in saved["param_groups"]:
            group["fused"], group["weight_decay"] = True, 0.25
        trainer.state.load_state_dict({"optimizer": saved, "scaler": None})
        (group,) = trainer.state.optimizer.optimizer.param_groups
        assert (group["fused"], group["weight_decay"]) == (None, 0.25)


NEVER_BEFORE_THE_FIRST_STEP = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
    "torchvision",
    "sympy",
    "matplotlib",
    "wandb",
)


@pytest.mark.slow
def test_the_first_step_waits_for_no_module_that_it_does_not_need(tmp_path: Path) -> None:
    """They take as long to import as torch itself; those that are needed later come later."""
    program = f"""
import sys
from trainlib import train

def first(*arguments):
    from trainlib.training.step.train_step import train_step
    result = train_step(*arguments)
    print("at the first step:", [name for name in {NEVER_BEFORE_THE_FIRST_STEP} if name in sys.modules])
    return result

from trainlib.training.tuning import memory as loop
loop.train_step = first
train.main(["cifar10_cnn", "name=run", "data={{name: synthetic, augment: {{flip: true}}}}", "train={{steps: 1}}"])
print("at the end:", "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    # Nor does anything after it, to the end of the run, need torch's compiler.
    told = [line for line in done.stdout.splitlines() if line.startswith("at the")]
    assert told == ["at the first step: []", "at the end: False"]
