"""The range test of `launch find-lr`: which value it suggests, and the steps that it makes."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path

import pytest
import ranks
import torch
from parts import build_trainer, make_dataset, resolved
from torch import nn

from launch.cli import main as launch
from trainlib.distributed import process_group
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.errors import UserError
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.training.trainer import Trainer
from trainlib.training.tuning.range_test import (
    RangeTest,
    RangeTestOver,
    exploded_at,
    learning_rate,
    smoothed,
    suggest,
)

RATES = [learning_rate(step, 1e-7, 10.0, 100) for step in range(100)]


def falling(rate: float, middle: float, noise: float = 0.0) -> float:
    """A loss that falls around `middle`, in a decade, and rises a hundred times further on."""
    place = math.log10(rate / middle)
    return 2.3 - 1.5 / (1 + math.exp(-4 * place)) + math.exp(min(8 * (place - 2), 30)) + noise


def test_the_learning_rate_grows_by_the_same_factor() -> None:
    assert RATES[0] == 1e-7
    assert RATES[-1] == pytest.approx(10.0, rel=1e-12)
    assert [b / a for a, b in itertools.pairwise(RATES)] == pytest.approx([10 ** (8 / 99)] * 99, rel=1e-12)


@pytest.mark.parametrize("middle", [1e-5, 1e-3, 1e-2])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_where_the_loss_falls_fastest(middle: float, noise: float) -> None:
    draws = torch.empty(100).uniform_(-noise, noise, generator=torch.Generator().manual_seed(1)).tolist()
    losses = [falling(rate, middle, draw) for rate, draw in zip(RATES, draws, strict=True)]
    found = suggest(RATES, losses[: exploded_at(losses)])
    assert found is not None
    assert abs(math.log10(found.lr / middle)) < (0.1 if not noise else 0.4)
    assert found.lr < found.lowest < 200 * middle


@pytest.mark.parametrize("below", [2.0, 2.3, 5.0])
def test_a_loss_that_may_be_negative_falls_fastest_at_the_same_place(below: float) -> None:
    """As one of one's own may be: it was taken for one that explodes at once."""
    losses = [falling(rate, 1e-3) - below for rate in RATES]
    end = exploded_at(losses)
    assert end is not None
    assert 70 < end < 90
    found = suggest(RATES, losses[:end])
    assert found is not None
    assert abs(math.log10(found.lr / 1e-3)) < 0.1


@pytest.mark.parametrize("losses", [[2.3] * 100, [2.3 + 0.01 * i for i in range(100)], [2.3, 1.0], []])
def test_a_loss_that_never_falls_suggests_nothing(losses: list[float]) -> None:
    assert suggest(RATES, losses) is None


@pytest.mark.parametrize(
    ("losses", "place"),
    [
        ([1.0] * 30, None),
        ([1.0] * 30 + [100.0], 30),  # the running mean is then 10.9
        ([1.0] * 30 + [20.0, 20.0], 31),
        ([1.0] * 5 + [math.nan, 1.0], 5),
        ([1.0] * 5 + [math.inf], 5),
        ([4.0, 3.0, 2.0, 1.0], None),
    ],
)
def test_the_end_of_a_test(losses: list[float], place: int | None) -> None:
    assert exploded_at(losses) == place


def test_the_smoothed_curve_keeps_its_ends() -> None:
    assert smoothed([1.0, 5.0, 3.0]) == [1.0, 3.0, 3.0]
    assert smoothed([]) == []


def test_the_steps_are_those_of_a_plain_loop() -> None:
    """Group `2.*` has a learning rate of its own, which stays."""
    rates = [learning_rate(step, 1e-3, 1.0, 6) for step in range(6)]
    dataset = make_dataset(70)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Linear(8, 10))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Linear(8, 10))
    plain.load_state_dict(model.state_dict())
    values = {
        "data": {"name": "synthetic", "val_fraction": 0.0, "augment": {}},
        "optimizer": {"name": "SGD", "lr": rates[0], "param_groups": [{"match": "2.*", "lr": 0.01}]},
        "scheduler": None,
        "train": {"steps": 6, "batch_size": 20},
        "tracking": {"log_every": 1},
    }
    config = resolved(values)
    test = RangeTest(rates)
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, dataset, accelerator, None, CustomParts(model=model), hooks=[test])
        assert trainer.run(StopConsensus(StopFlag(), None))
    expected, preprocess = [], trainer.samples.train.preprocess
    for rate, ids_N in zip(rates, [b for epoch in (0, 1) for b in trainer.plan.batches(epoch)], strict=False):
        images_NCHW = preprocess(dataset.train.images.images_NCHW[ids_N])  # type: ignore[attr-defined]
        loss = nn.functional.cross_entropy(plain(images_NCHW), dataset.train.labels_N[ids_N])
        expected.append(loss.item())
        plain.zero_grad()
        loss.backward()
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=0.01 if name.startswith("2.") else rate)
    assert test.losses == pytest.approx(expected, rel=1e-5)


def test_no_parameter_that_follows_is_a_mistake() -> None:
    group = {"match": "*", "lr": 0.01}
    config = resolved(
        {"data": {"name": "synthetic"}, "optimizer": {"name": "SGD", "lr": 1e-7, "param_groups": [group]}}
    )
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, make_dataset(70), accelerator, None, hooks=[])
        with pytest.raises(UserError, match="no parameter uses it"):
            RangeTest(RATES).on_start(trainer)


def test_an_explosion_ends_the_training() -> None:
    class Exploding(RangeTest):
        def on_step_end(self, trainer: Trainer, result: object) -> None:
            self.losses[-1] = math.nan if len(self.losses) == 3 else 1.0
            super().on_step_end(trainer, result)  # type: ignore[arg-type]

    config = resolved(
        {
            "data": {"name": "synthetic", "val_fraction": 0.0},
            "optimizer": {"name": "SGD", "lr": 1e-7},
            "tracking": {"log_every": 1},
        }
    )
    test = Exploding(RATES)
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, make_dataset(300), accelerator, None, hooks=[test])
        with pytest.raises(RangeTestOver):
            trainer.run(StopConsensus(StopFlag(), None))
    assert len(test.losses) == 3


WORDS = ["quickstart", "data.limit=100", "train.batch_size=20", "train.virtual_shards=4"]


def find_lr(words: list[str]) -> int:
    """The program, as one of the ranks."""
    from trainlib.training.programs.find.find_lr import main

    return main([*words, "--lowest", "1e-4", "--highest", "10"])


def curve(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as table:
        return list(csv.DictReader(table))


@pytest.mark.slow
def test_the_curve_is_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    """In every bit in elastic mode, else within rounding; nothing but the curve is left."""
    curves = {}
    for mode, world_size in (("elastic", 1), ("elastic", 2), ("elastic", 4), ("exact", 2)):
        cwd = tmp_path / f"{mode}-{world_size}"
        cwd.mkdir()
        words = [*WORDS, f"train.reproducibility={mode}", "--steps", "24", "--output", "lr.csv"]
        codes = ranks.run(find_lr, words, world_size=world_size, cwd=cwd)
        assert len(set(codes)) == 1, ranks.console(cwd)
        assert sorted(path.name for path in cwd.iterdir() if "console" not in path.name) == ["lr.csv", "lr.png"]
        curves[mode, world_size] = curve(cwd / "lr.csv")
    assert curves["elastic", 1] == curves["elastic", 2] == curves["elastic", 4]
    until = len(curves["exact", 2]) // 2  # before it explodes, where rounding is not amplified
    losses = [[float(row["loss"]) for row in curves[case][:until]] for case in (("elastic", 1), ("exact", 2))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert [float(row["lr"]) for row in curves["exact", 2]][:2] == pytest.approx([1e-4, 1e-4 * 1e5 ** (1 / 23)])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--lowest 1 --highest 0.1", "got 1 and 0.1, must rise"),
        ("--lowest nan", "got nan and 10, must rise"),
        ("--output no/folder/x.csv", "no/folder is no folder"),
        ("--output x.txt", "must end in .csv"),
        ("optimizer.name=Nope", "Nope"),
    ],
)
def test_mistakes_are_told_before_torch_is_imported(
    words: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch(["find-lr", "quickstart", *words.split()]) == 2
    assert says in capsys.readouterr().err
