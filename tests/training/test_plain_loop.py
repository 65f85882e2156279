"""One process, fp32: the same bits as a plain PyTorch loop that is fed the same batches.

For each of the optimizers and each of the losses: every step's loss and all final weights are equal, not close.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from parts import Rows, build_trainer, make_dataset, resolved, tutorial_cnn
from torch import Tensor, nn

from trainlib.config import Config
from trainlib.distributed import process_group
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.training.hooks import HookList, TrackerHook
from trainlib.training.trainer import Trainer

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "{name: SGD, lr: 5.0e-4, momentum: 0.9}": lambda p: torch.optim.SGD(p, lr=5e-4, momentum=0.9),
    "{name: RMSprop, lr: 1.0e-3}": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "{name: Adam, lr: 1.0e-3}": lambda p: torch.optim.Adam(p, lr=1e-3),
    "{name: AdamW, lr: 1.0e-3, weight_decay: 0.05}": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05),
}


def one_hot(labels: Tensor) -> Tensor:
    return nn.functional.one_hot(labels, 10).float()


WEIGHTS = [0.5, 1.0, 2.0, 1.0, 1.0, 0.1, 1.0, 3.0, 1.0, 1.0]
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "{name: CrossEntropyLoss}": lambda x, y: nn.CrossEntropyLoss()(x, y),
    "{name: CrossEntropyLoss, label_smoothing: 0.1}": lambda x, y: nn.CrossEntropyLoss(label_smoothing=0.1)(x, y),
    f"{{name: CrossEntropyLoss, weight: {WEIGHTS}}}": lambda x, y: nn.CrossEntropyLoss(torch.tensor(WEIGHTS))(x, y),
    "{name: CrossEntropyLoss, reduction: sum}": lambda x, y: nn.CrossEntropyLoss(reduction="sum")(x, y),
    "{name: NLLLoss}": lambda x, y: nn.NLLLoss()(x.log_softmax(1), y),
    "{name: BCELoss}": lambda x, y: nn.BCELoss()(x.sigmoid(), one_hot(y)),
    "{name: BCEWithLogitsLoss}": lambda x, y: nn.BCEWithLogitsLoss()(x, one_hot(y)),
    "{name: L1Loss}": lambda x, y: nn.L1Loss()(x.softmax(1), one_hot(y)),
    "{name: SmoothL1Loss}": lambda x, y: nn.SmoothL1Loss()(x.softmax(1), one_hot(y)),
    "{name: HuberLoss}": lambda x, y: nn.HuberLoss()(x.softmax(1), one_hot(y)),
    "{name: MSELoss}": lambda x, y: nn.MSELoss()(x.softmax(1), one_hot(y)),
    "{name: MultiMarginLoss}": lambda x, y: nn.MultiMarginLoss()(x, y),
}


@pytest.fixture(scope="module")
def accelerator() -> Iterator[Accelerator]:
    with process_group.joined(resolved({}).train) as joined:
        yield joined


def ours(config: Config, accelerator: Accelerator) -> tuple[Trainer, Rows, dict[str, Tensor]]:
    """Train; returns the loop, its rows and the initial weights."""
    trainer = build_trainer(config, make_dataset(70), accelerator, None)
    initial = copy.deepcopy(trainer.state.classifier.module.state_dict())
    rows = Rows()
    trainer.hooks = HookList([TrackerHook(rows)])
    assert trainer.run(StopConsensus(StopFlag(), None))
    return trainer, rows, initial


def plain(
    trainer: Trainer,
    initial: dict[str, Tensor],
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    criterion: Callable[[Tensor, Tensor], Tensor],
) -> tuple[list[float], list[Tensor]]:
    """What anybody would write, on the same batches; returns the losses and the final weights."""
    model = tutorial_cnn().to(memory_format=torch.channels_last)
    model.load_state_dict(dict(zip(model.state_dict(), initial.values(), strict=True)))
    optimizer = make_optimizer(model.parameters())
    losses = []
    for epoch in range(3):
        for [micro_batch] in trainer.samples.train.train_batches(
            trainer.plan.batches(epoch), epoch, trainer.samples.augmentation
        ):
            loss = criterion(model(micro_batch.images_NCHW), micro_batch.targets.labels_N)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, list(model.state_dict().values())


def pairs() -> Iterator[object]:
    """Every optimizer with every loss; those that are neither the first optimizer nor the first loss are slow."""
    for optimizer in OPTIMIZERS:
        for loss in LOSSES:
            quick = optimizer == next(iter(OPTIMIZERS)) or loss == next(iter(LOSSES))
            yield pytest.param(optimizer, loss, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("optimizer", "loss"), list(pairs()))
def test_bits_of_a_plain_loop(accelerator: Accelerator, optimizer: str, loss: str) -> None:
    import yaml

    config = resolved(
        {
            "data": {"name": "synthetic", "val_fraction": 0.0, "augment": {"flip": True, "crop_padding": 4}},
            "optimizer": yaml.safe_load(optimizer),
            "loss": yaml.safe_load(loss),
            "scheduler": None,
            "train": {"epochs": 3, "batch_size": 20},
            "tracking": {"log_every": 1},
        }
    )
    trainer, rows, initial = ours(config, accelerator)
    losses, weights = plain(trainer, initial, OPTIMIZERS[optimizer], LOSSES[loss])

    # Rows are sums over their denominators in float64, which is the step's loss as soon as it is float32 again.
    rows_N = torch.tensor([row["loss"] for row in rows if row.get("scope") == "step"])
    assert rows_N.tolist() == losses
    assert len(losses) == 12  # three batches of 20 and one of 10, three times
    trained = list(trainer.state.classifier.module.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(trained, weights, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(trained, initial.values(), strict=True))


def test_a_batch_whose_classes_all_have_weight_0_changes_nothing(accelerator: Accelerator) -> None:
    first = int(make_dataset(70).train.labels_N[0])
    config = resolved(
        {
            "data": {"name": "synthetic", "val_fraction": 0.0, "shuffle": False},
            "loss": {"name": "CrossEntropyLoss", "weight": [float(label != first) for label in range(10)]},
            "train": {"steps": 1, "batch_size": 1},
        }
    )
    trainer, _, initial = ours(config, accelerator)
    trained = trainer.state.classifier.module.state_dict()
    assert all(torch.equal(trained[name], initial[name]) for name in initial)


def test_epoch_rows_are_over_all_samples(accelerator: Accelerator) -> None:
    config = resolved(
        {
            "data": {"name": "synthetic", "val_fraction": 0.0},
            "train": {"epochs": 2, "batch_size": 20},
            "tracking": {"log_every": 1},
        }
    )
    _, rows, _ = ours(config, accelerator)
    for epoch in (1, 2):
        steps = [row for row in rows if row.get("scope") == "step" and row["epoch"] == epoch]
        whole = next(row for row in rows if row.get("scope") == "epoch" and row["epoch"] == epoch)
        assert whole["count"] == sum(row["count"] for row in steps) == 70
        assert whole["loss"] == pytest.approx(sum(row["loss"] * row["count"] for row in steps) / 70, rel=1e-12)
        assert whole["accuracy"] == pytest.approx(sum(row["accuracy"] * row["count"] for row in steps) / 70, rel=1e-12)
