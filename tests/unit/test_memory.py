"""When memory runs out: smaller pieces of the same batch. The error is torch's own, raised by a model here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ranks
import torch
from parts import Rows, build_trainer, make_dataset, resolved
from torch import Tensor, nn

from trainlib.distributed import process_group
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.distributed.devices.out_of_memory import InPieces
from trainlib.errors import UserError
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.training.hooks import HookList, TrackerHook
from trainlib.training.step.train_step import train_step
from trainlib.training.step.update import UpdateStatus
from trainlib.training.trainer import Trainer
from trainlib.training.tuning import memory

TRAINING = {
    "data": {"name": "synthetic", "val_fraction": 0.0, "augment": {}},
    "scheduler": None,
    "train": {"epochs": 2, "batch_size": 20},
    "tracking": {"log_every": 1},
}


class Small(nn.Module):
    """Holds so many images with their gradients, any number without."""

    def __init__(self, num_classes: int, room: int):
        super().__init__()
        self.room = room
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.Tanh(), nn.Linear(8, num_classes))
        self.seen: list[int] = []

    def forward(self, images_NCHW: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.seen.append(len(images_NCHW))
            if len(images_NCHW) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        logits: Tensor = self.body(images_NCHW)
        return logits


def trained(room: int, **train: object) -> tuple[Trainer, Small, list[float]]:
    config = resolved(TRAINING | {"train": TRAINING["train"] | train})  # type: ignore[operator]
    rows = Rows()
    with process_group.joined(config.train) as accelerator:
        made: list[Small] = []

        def model(num_classes: int) -> nn.Module:
            made.append(Small(num_classes, room))
            return made[0]

        trainer = build_trainer(config, make_dataset(70), accelerator, None, CustomParts(model=model))
        made[0].seen.clear()
        trainer.hooks = HookList([TrackerHook(rows)])
        assert trainer.run(StopConsensus(StopFlag(), None))
    return trainer, made[0], [row["loss"] for row in rows if row.get("scope") == "step"]


def test_too_large_pieces_are_halved_and_the_gradient_stays(caplog: pytest.LogCaptureFixture) -> None:
    whole, _, expected = trained(room=20)
    with caplog.at_level(logging.WARNING, "trainlib"):
        halved, model, losses = trained(room=6)
    # 20, 10, then pieces of 5: the first step is tried again, none of the others is, and the last batch is of 10.
    assert model.seen == [20, 10] + [5, 5, 5, 5] * 3 + [5, 5] + ([5, 5, 5, 5] * 3 + [5, 5])
    assert [record.message.split(" images")[0] for record in caplog.records] == ["20", "10"]
    assert losses == pytest.approx(expected, rel=1e-5)
    pairs = zip(whole.state.parameters, halved.state.parameters, strict=True)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


def test_it_is_what_the_same_micro_batches_give() -> None:
    asked, _, _ = trained(room=20, micro_batch_size=5)
    found, _, _ = trained(room=5)
    pairs = zip(asked.state.parameters, found.state.parameters, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_resumed_run_begins_with_what_was_found() -> None:
    trainer, _, _ = trained(room=5)
    state = trainer.progress.state_dict(torch.device("cpu"))
    assert state["fitting"] == 5


def test_one_image_that_does_not_fit_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match=r"train\.micro_batch_size: 1 images at a time do not fit"):
        trained(room=0)


@pytest.fixture
def norm_loop() -> Iterator[Trainer]:
    """With a BatchNorm, a batch of 16."""
    config = resolved(TRAINING | {"train": {"epochs": 1, "batch_size": 16}})

    def model(num_classes: int) -> nn.Module:
        body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), Small(num_classes, 8))
        body[-1].body = nn.Linear(4 * 30 * 30, num_classes)
        return body

    with process_group.joined(config.train) as accelerator:
        yield build_trainer(config, make_dataset(32), accelerator, None, CustomParts(model=model))


def test_a_step_that_ran_out_of_memory_left_nothing_behind(norm_loop: Trainer) -> None:
    state = norm_loop.state
    before = {name: value.clone() for name, value in state.classifier.module.state_dict().items()}
    [micro_batches] = norm_loop.samples.train.train_batches(
        norm_loop.plan.batches(0)[:1], 0, norm_loop.samples.augmentation
    )
    with pytest.raises(torch.OutOfMemoryError):
        train_step(state, 0, micro_batches, 16.0)
    assert all(torch.equal(value, before[name]) for name, value in state.classifier.module.state_dict().items())
    assert all(parameter.grad is None for parameter in state.parameters)


def test_the_trial_before_training_finds_what_fits_and_changes_nothing(norm_loop: Trainer) -> None:
    state = norm_loop.state
    before = {name: value.clone() for name, value in state.classifier.module.state_dict().items()}
    dummy_input = norm_loop.samples.train.dummy_input()
    assert memory.find_limit(state, dummy_input, 16) == 8
    assert memory.find_limit(state, dummy_input, 8) is None
    assert all(torch.equal(value, before[name]) for name, value in state.classifier.module.state_dict().items())
    assert all(parameter.grad is None for parameter in state.parameters)


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")


def test_memory_that_runs_out_in_the_optimizers_step_is_told_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.optim.SGD, "step", full)
    with pytest.raises(UserError, match=r"the optimizer's step does not fit .* smaller train.batch_size .*1.00 GiB"):
        trained(room=20)


def test_memory_that_runs_out_in_an_evaluation_is_told(norm_loop: Trainer) -> None:
    norm_loop.state.classifier.module.register_forward_pre_hook(full)
    with pytest.raises(UserError, match=r"evaluation of 32 images at a time does not fit .*micro_batch_size to 8, or"):
        norm_loop.test()


def _find_what_fits(room_of_rank: list[int]) -> int:
    """In each rank: what the trial finds; then a step, as the trial must leave DistributedDataParallel fit for one."""
    config = resolved(TRAINING)
    with process_group.joined(config.train) as accelerator:
        rank = accelerator.process_index
        small = Small(10, room=10)
        trainer = build_trainer(config, make_dataset(40), accelerator, None, CustomParts(model=small))
        small.room = room_of_rank[rank]
        found = memory.find_limit(trainer.state, trainer.samples.train.dummy_input(), 10)
        [micro_batches] = trainer.samples.train.train_batches(
            trainer.plan.batches(0)[:1], 0, trainer.samples.augmentation
        )
        applied = train_step(trainer.state, 0, memory.split_to_limit(micro_batches, found), 20.0).status
    return 0 if (found, applied) == (3, UpdateStatus.APPLIED) else 1


def test_ranks_agree_on_the_smallest(tmp_path: Path) -> None:
    assert ranks.run(_find_what_fits, [10, 3], world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)


def test_a_rank_that_cannot_hold_one_image_is_told_by_all(tmp_path: Path) -> None:
    """None of them waits for one that has given up."""
    assert ranks.run(_find_what_fits, [10, 0], world_size=2, cwd=tmp_path) == [1, 1]
    for rank in (0, 1):
        assert "train.batch_size: rank 1 cannot hold even one image" in ranks.console(tmp_path, rank)


@pytest.mark.parametrize("room", [1, 3, 5, 8])
def test_an_evaluation_goes_on_in_smaller_pieces(room: int, caplog: pytest.LogCaptureFixture) -> None:
    """Each image is computed once more at most for each halving, and the logits stay in order."""
    seen: list[int] = []

    def network(images_NCHW: Tensor) -> Tensor:
        seen.append(len(images_NCHW))
        if len(images_NCHW) > room:
            full()
        return images_NCHW.flatten(1)[:, :3]

    in_pieces = InPieces(network)
    batches = torch.randn(2, 8, 3, 4, 4)
    with caplog.at_level(logging.WARNING, "trainlib"):
        assert all(torch.equal(in_pieces(batch), batch.flatten(1)[:, :3]) for batch in batches)
    halvings = {1: [8, 4, 2], 3: [8, 4], 5: [8], 8: []}[room]
    assert [int(record.message.split("of ")[1].split()[0]) for record in caplog.records] == halvings
    assert seen[: len(halvings)] == halvings
    assert max(seen[len(halvings) :]) <= room


def test_one_image_that_cannot_be_evaluated_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        InPieces(full)(torch.zeros(4, 3, 2, 2))  # type: ignore[arg-type]


def test_an_evaluation_takes_no_more_images_than_training_was_found_to_hold() -> None:
    sizes: list[int] = []
    train = {"epochs": 1, "batch_size": 20}
    config = resolved(TRAINING | {"train": train})
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(
            config, make_dataset(70, 40), accelerator, None, CustomParts(model=lambda classes: Small(classes, 5))
        )
        trainer.state.classifier.module.register_forward_pre_hook(
            lambda module, inputs: None if module.training else sizes.append(len(inputs[0]))
        )
        assert trainer.run(StopConsensus(StopFlag(), None))
        trainer.test()
    assert trainer.progress.fitting == 5
    assert max(sizes) == 10
