"""What goes wrong on GPUs, each as a function of one rank: assertions hold in the rank, which else ends with 1."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_ranks import stand_in
from parts import Rows, build_trainer, make_dataset, resolved
from torch import Tensor
from trainings import BASE

from trainlib.distributed import process_group
from trainlib.distributed.consensus.channel import open_channel
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.distributed.devices import out_of_memory
from trainlib.errors import NonFiniteError, UserError
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.models.weights.files import weights_sha256
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.runs.machine import launch_variables
from trainlib.training.hooks import HookList, TrackerHook
from trainlib.training.step import train_step
from trainlib.training.step.update import DeviceCheckedUpdate, UpdateStatus
from trainlib.training.trainer import Trainer
from trainlib.training.tuning import memory

NOT_AUGMENTED = {"name": "synthetic", "val_fraction": 0.0, "augment": {}}
PLAIN = {"data": NOT_AUGMENTED, "optimizer": {"name": "SGD", "lr": 0.1}, "scheduler": None}


@contextmanager
def made(changes: Mapping[str, Any], *, custom: CustomParts | None = None, images: int = 24) -> Iterator[Trainer]:
    config = resolved({**BASE, **PLAIN, **changes})
    with process_group.joined(config.train) as accelerator:
        yield build_trainer(config, make_dataset(images), accelerator, None, custom or CustomParts())


def run(trainer: Trainer) -> bool:
    return trainer.run(StopConsensus(StopFlag(), open_channel(TRAIN)))


TRAIN = resolved({**BASE, **PLAIN}).train


class Losses:
    """Cross entropy; once `in_training`, that of a rank's third batch is not a number."""

    def __init__(self, rank: int) -> None:
        self.rank, self.calls, self.in_training = rank, 0, False

    def __call__(self, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
        losses_N = torch.nn.functional.cross_entropy(logits_NC, labels_N, reduction="none")
        self.calls += self.in_training
        is_bad = self.calls == 3 and int(os.environ.get("RANK", "0")) == self.rank
        return losses_N * float("nan") if is_bad else losses_N


def nan_on_one_gpu(name: str, is_bad: bool, output: str) -> None:
    """Write the digest of the weights after two steps; where `is_bad`, the third one is not a number on rank 1."""
    losses = Losses(rank=1)
    changes = {"train": {"steps": 6 if is_bad else 2, "batch_size": 4}, "optimizer": {"name": name, "lr": 0.01}}
    with made(changes | {"tracking": {"log_every": 5}}, custom=CustomParts(loss=losses)) as trainer:
        assert isinstance(trainer.state.update, DeviceCheckedUpdate)  # the host has not looked by then
        losses.in_training = is_bad
        if is_bad:
            with pytest.raises(NonFiniteError, match=r"^step 3 was not applied: the loss is nan on rank 1"):
                run(trainer)
            assert trainer.progress.step == 2
        else:
            assert run(trainer)
        digest = weights_sha256({str(i): parameter for i, parameter in enumerate(trainer.state.parameters)})
        Path(f"{output}-{os.environ['RANK']}").write_text(digest)


def fp16_overflow(fused: bool) -> None:
    """A loss scale that is far too large: the first steps are skipped, whichever kernels the optimizer has."""
    optimizer = {"name": "SGD", "lr": 0.1} | ({"fused": True} if fused else {})
    with made({"train": {"steps": 6, "batch_size": 4, "precision": "fp16"}, "optimizer": optimizer}) as trainer:
        trainer.state.accelerator.scaler._init_scale = 2.0**40
        prepared = trainer.samples.train.train_batches(trainer.plan.batches(0), 0, trainer.samples.augmentation)
        told = []
        for step in range(3):
            before = [parameter.detach().clone() for parameter in trainer.state.parameters]
            result = train_step.train_step(trainer.state, step, next(prepared), 4.0)
            moved = any(not torch.equal(a, b) for a, b in zip(trainer.state.parameters, before, strict=True))
            told.append((result.status, moved))
        assert told == [(UpdateStatus.SKIPPED, False)] * 3
        trainer.state.accelerator.scaler.update(128.0)
        result = train_step.train_step(trainer.state, 3, next(prepared), 4.0)
        assert result.status is UpdateStatus.APPLIED
        assert any(not torch.equal(a, b) for a, b in zip(trainer.state.parameters, before, strict=True))


def fp16_nan(fused: bool) -> None:
    """A loss that is not a number is no matter of its scale, and ends the run."""
    optimizer = {"name": "SGD", "lr": 0.1} | ({"fused": True} if fused else {})
    losses = Losses(rank=0)
    changes = {"train": {"steps": 6, "batch_size": 4, "precision": "fp16"}, "optimizer": optimizer}
    with made(changes, custom=CustomParts(loss=losses)) as trainer:
        trainer.state.accelerator.scaler._init_scale = 128.0
        losses.in_training = True
        with pytest.raises(NonFiniteError, match=r"^step 3 was not applied: the loss is nan"):
            run(trainer)


class Full:
    """Memory that is full from now on, until memory is given back."""

    def __init__(self) -> None:
        self.library, self.times = stand_in(), 0

    def fill(self) -> None:
        torch.accelerator.empty_cache()
        self.library.fakecuda_set_bytes(1)
        self.times += 1

    def empty(self, device: torch.device) -> None:
        self.library.fakecuda_set_bytes(0)  # back to the usual size
        torch.accelerator.empty_cache()


def large(device: torch.device) -> Tensor:
    """Ask for more than torch has cached."""
    return torch.empty(64 << 20, dtype=torch.uint8, device=device)


def memory_runs_out(phase: str) -> None:
    """Once, in the second step or the evaluation; afterwards memory is there again."""
    results = []
    for fails in (False, True):
        full = Full()
        with (
            pytest.MonkeyPatch.context() as patched,
            made({"train": {"steps": 4, "batch_size": 8}, **_phases(phase)}) as trainer,
        ):
            for module in (memory, out_of_memory):
                patched.setattr(module, "release_cached_memory", full.empty)
            once = _once(full, trainer.state.accelerator.device) if fails else lambda: None
            _arm(phase, trainer, once, patched)
            rows = Rows()
            trainer.hooks = HookList([TrackerHook(rows)])
            if phase == "update" and fails:
                with pytest.raises(UserError, match=r"the optimizer's step does not .* train\.micro_batch_size to 4"):
                    run(trainer)
                full.empty(trainer.state.accelerator.device)
                return
            assert run(trainer)
            assert full.times == int(fails)
            results.append((rows.without_times(), [p.detach().cpu().clone() for p in trainer.state.parameters]))
            assert trainer.progress.fitting == (4 if fails and phase != "evaluation" else None)
    (expected_rows, expected), (rows_, weights) = results
    assert [row["step"] for row in rows_] == [row["step"] for row in expected_rows]
    for row, other in zip(rows_, expected_rows, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert row["accuracy"] == other["accuracy"]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(weights, expected, strict=True))


def _phases(phase: str) -> dict[str, Any]:
    return {"data": NOT_AUGMENTED | {"val_fraction": 0.25}} if phase == "evaluation" else {}


def _once(full: Full, device: torch.device) -> Callable[[], None]:
    def fill() -> None:
        if not full.times:
            full.fill()
            large(device)

    return fill


def _arm(phase: str, trainer: Trainer, fill: Callable[[], None], patched: pytest.MonkeyPatch) -> None:
    """Let memory run out in this phase of training."""
    module = trainer.state.classifier.module
    if phase == "forward":
        module.register_forward_pre_hook(lambda *_: fill() if module.training else None)
    elif phase == "evaluation":
        module.register_forward_pre_hook(lambda *_: None if module.training else fill())
    elif phase == "backward":
        trainer.state.parameters[0].register_hook(lambda gradient: fill())
    else:
        optimizer = trainer.state.optimizer.optimizer
        step = optimizer.step

        def filled(*args: Any, **kwargs: Any) -> Any:
            fill()
            return step(*args, **kwargs)

        patched.setattr(trainer.state.update.stepped, "step", filled)


def memory_by_size() -> None:
    """The trial before training finds how many images fit, of the driver's own numbers."""
    sizes = {}
    for fits in (True, False):
        with made({"train": {"steps": 2, "batch_size": 128}}, images=128) as trainer:
            torch.cuda.reset_peak_memory_stats()
            assert run(trainer)
            sizes[fits] = (trainer.progress.fitting, torch.cuda.max_memory_reserved())
        del trainer
        gc.collect()
        torch.cuda.empty_cache()
        stand_in().fakecuda_set_bytes(int(sizes[True][1] * 0.75))
    assert sizes[True][0] is None
    assert sizes[False][0] in (32, 64)
    assert sizes[False][1] <= sizes[True][1] * 0.75


def find_batch(words: list[str], bytes_of_rank: list[int]) -> int:
    """Run the program of `launch find-batch` as one of the ranks, whose GPUs have so many bytes."""
    from trainlib.training.programs.find.find_batch import main

    stand_in().fakecuda_set_bytes(bytes_of_rank[launch_variables.rank()])
    return main(words)


def trains_in_one_piece(words: list[str], size: int, num_bytes: int) -> None:
    """On GPUs of so many bytes, two steps of `size` images at a time on each need no smaller micro-batches."""
    from trainlib.training.programs.find.without_run import load_trial, trial_training

    stand_in().fakecuda_set_bytes(num_bytes)
    batch = f"train.batch_size={size * launch_variables.world_size()}"
    config, custom = load_trial([*words, batch, "train.steps=2"], [], "run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(memory, "find_limit", lambda *_: None)  # the trial before the training
        with trial_training(config, custom) as training:
            trainer = Trainer(training, [])
            assert run(trainer)
            assert trainer.progress.fitting is None


def one_gpu_for_each_task() -> None:
    """Two ranks on one machine, each of which sees one GPU, its own."""
    with made({"train": {"steps": 2, "batch_size": 8}}) as trainer:
        assert trainer.state.accelerator.device == torch.device("cuda", 0)
        assert run(trainer)


def fewer_gpus_than_ranks() -> None:
    with pytest.raises(UserError, match=r"3 processes were started on this machine, and rank \d sees 2 GPUs"):
        process_group.check_device(TRAIN)


def adagrad_without_fused_kernel() -> None:
    """As with torch 2.11: the class takes `fused`, and its kernel fails."""
    plain = torch.optim.Adagrad.__init__

    def init(self: Any, params: Any, *args: Any, fused: bool | None = None, **kwargs: Any) -> None:
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be on CPU")
        plain(self, params, *args, **kwargs)

    for broken in (False, True):
        if broken:
            torch.optim.Adagrad.__init__ = init  # type: ignore[method-assign]
        with made({"train": {"steps": 2, "batch_size": 8}, "optimizer": {"name": "Adagrad", "lr": 0.01}}) as trainer:
            assert isinstance(trainer.state.update, DeviceCheckedUpdate) is not broken
            assert run(trainer)
