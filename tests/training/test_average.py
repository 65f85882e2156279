"""train.average: the values of the average, that it is what is evaluated and kept, and that no resume changes a bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks
import stopping
import tiny
import torch
from accelerate import Accelerator
from bad_losses import TRAINING, train_with_faults
from parts import build_trainer, make_dataset, resolved
from safetensors.torch import load_file
from tiers import slow_but
from torch import Tensor, nn

from trainlib import load_model
from trainlib.distributed import process_group
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.errors import EXIT_STOPPED
from trainlib.models.weights.ema import ExponentialMovingAverage
from trainlib.models.weights.files import weights_sha256
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.runs.records.checkpoints import name_of
from trainlib.runs.records.rows import Row
from trainlib.training.checkpoints import checkpoint
from trainlib.training.hooks import Hook
from trainlib.training.step.train_step import StepResult
from trainlib.training.trainer import Trainer

State = dict[str, Tensor]
NORM = "model={name: shufflenet_v2_x0_5}"  # BatchNorm: buffers, of floats and of whole numbers
STEPS = 8


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("average") / "images"
    tiny.make_images(root)
    return root


@pytest.fixture(scope="module")
def accelerator() -> Iterator[Accelerator]:
    with process_group.joined(resolved({}).train) as joined:
        yield joined


def copy_of(module: nn.Module) -> State:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Watch(Hook):
    """Notes the weights and their average after every step, and the rows."""

    def __init__(self) -> None:
        self.raw: list[State] = []  # after each applied step
        self.averages: list[State] = []  # after each step, applied or not
        self.rows: list[dict[str, Any]] = []

    def on_start(self, trainer: Trainer) -> None:
        module = trainer.state.classifier.module
        trainer.state.optimizer.optimizer.register_step_post_hook(lambda *_: self.raw.append(copy_of(module)))

    def on_step_end(self, trainer: Trainer, result: StepResult) -> None:
        with trainer.state.ema.swapped_in():
            self.averages.append(copy_of(trainer.state.classifier.module))

    def on_row(self, row: Row) -> None:
        self.rows.append(dict(row))


def small_run(accelerator: Accelerator, average: dict[str, Any] | None, **train: Any) -> tuple[Trainer, Watch, State]:
    """Eight steps in two epochs; returns the loop, what was noted, and the initial state."""
    config = resolved(
        {
            "data": {"name": "synthetic", "val_fraction": 0.2, "augment": {}},
            "model": {"name": "shufflenet_v2_x0_5", "freeze": train.pop("freeze", None)},
            "optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9},
            "train": {"epochs": 2, "batch_size": 12, "average": average, **train},
        }
    )
    watch = Watch()
    trainer = build_trainer(config, make_dataset(60, size=32), accelerator, hooks=[watch])
    initial = copy_of(trainer.state.classifier.module)
    assert trainer.run(StopConsensus(StopFlag(), None))
    return trainer, watch, initial


def plain_averages(initial: State, raw: list[State], decay: float, every: int) -> list[State]:
    """After each step, in float64: as the documentation has it."""
    average = {name: tensor.double() for name, tensor in initial.items()}
    found, updates = [], 0
    for step, weights in enumerate(raw, 1):
        if step % every == 0:
            d = min(decay, (1 + updates) / (10 + updates))
            average = {name: d * average[name] + (1 - d) * weights[name].double() for name in average}
            updates += 1
        whole = {name: weights[name].double() for name in weights if not weights[name].is_floating_point()}
        average |= whole
        found.append(dict(average))
    return found


@pytest.mark.parametrize(("decay", "every"), slow_but([(0.9, 3)], [(0.99, 1), (0.2, 1), (0.9, 3)]))
def test_every_value_is_that_of_plain_code(accelerator: Accelerator, decay: float, every: int) -> None:
    trainer, watch, initial = small_run(accelerator, {"decay": decay, "every": every})
    assert len(watch.raw) == len(watch.averages) == STEPS
    expected = plain_averages(initial, watch.raw, decay, every)
    for ours, theirs, weights in zip(watch.averages, expected, watch.raw, strict=True):
        for name, tensor in ours.items():
            assert torch.allclose(tensor.double(), theirs[name], rtol=1e-5, atol=1e-6), name
        assert not torch.equal(ours["fc.weight"], weights["fc.weight"])
        assert torch.equal(ours["conv1.1.num_batches_tracked"], weights["conv1.1.num_batches_tracked"])
    final = trainer.state.classifier.module.state_dict()
    assert all(torch.equal(final[name], watch.raw[-1][name]) for name in final), "training goes on from the weights"


def test_what_is_evaluated_is_the_average(accelerator: Accelerator) -> None:
    """Validation rows against a plain forward pass, by the weights that plain code comes to."""
    trainer, watch, initial = small_run(accelerator, {"decay": 0.9})
    expected = plain_averages(initial, watch.raw, 0.9, 1)
    module, ids = trainer.state.classifier.module, trainer.samples.val_ids
    (images,) = make_dataset(60).train.images.batches([ids])
    logits = {}
    module.eval()
    for name, states in (("average", expected), ("weights", watch.raw)):
        module.load_state_dict(states[-1])
        with torch.no_grad():
            logits[name] = module((images / 255 - 0.5) / 0.25)
    labels = make_dataset(60).train.labels_N[ids]
    row = [row for row in watch.rows if row["split"] == "val"][-1]
    losses = {name: float(nn.functional.cross_entropy(found, labels)) for name, found in logits.items()}
    assert row["loss"] == pytest.approx(losses["average"], rel=1e-5)
    assert row["loss"] != pytest.approx(losses["weights"], rel=1e-4)
    assert row["accuracy"] == float((logits["average"].argmax(1) == labels).double().mean())


def test_a_step_that_was_not_applied_does_not_count(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainlib.training.step.train_step import train_step

    def without_two(state: Any, step: int, micro_batches: Any, denominator: float) -> Any:
        if step not in (2, 5):
            return train_step(state, step, micro_batches, denominator)
        assert isinstance(state.objective.module, nn.Module)
        with state.objective.module.register_forward_hook(lambda module, inputs, loss: loss * float("nan")):
            return train_step(state, step, micro_batches, denominator)

    monkeypatch.setattr("trainlib.training.tuning.memory.train_step", without_two)
    _, watch, initial = small_run(accelerator, {"decay": 0.8, "every": 2}, on_nonfinite="skip")
    assert (len(watch.raw), len(watch.averages)) == (STEPS - 2, STEPS)
    assert all(torch.equal(watch.averages[1][name], watch.averages[2][name]) for name in initial)
    expected = plain_averages(initial, watch.raw, 0.8, 2)[-1]
    for name, tensor in watch.averages[-1].items():
        assert torch.allclose(tensor.double(), expected[name], rtol=1e-5, atol=1e-6), name


def test_training_itself_is_the_same_in_every_bit(accelerator: Accelerator) -> None:
    _, without, _ = small_run(accelerator, None)
    _, with_it, _ = small_run(accelerator, {"decay": 0.9})
    for ours, theirs in zip(with_it.raw, without.raw, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for ours, theirs in zip(without.averages, without.raw, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), "without an average there is none"


def test_frozen_parameters_are_not_kept_twice(accelerator: Accelerator) -> None:
    trainer, watch, initial = small_run(accelerator, {"decay": 0.9}, freeze="backbone")
    assert isinstance(trainer.state.ema, ExponentialMovingAverage)
    with trainer.state.ema.swapped_in():
        kept = trainer.state.ema.state_dict()["raw_weights"]
    trained = {name for name, p in trainer.state.classifier.module.named_parameters() if p.requires_grad}
    assert trained == {"fc.weight", "fc.bias"}
    assert set(kept) == trained | {name for name in initial if name.endswith(("running_mean", "running_var"))}
    assert all(torch.equal(watch.averages[-1][name], initial[name]) for name in initial if name not in trained)


def test_the_weights_come_back_after_an_error_and_stay_where_they_are() -> None:
    module = nn.Linear(2, 2)
    average = ExponentialMovingAverage(module, lambda update: 0.9, 1)
    before, place = copy_of(module), module.weight.data_ptr()
    with torch.no_grad():
        module.weight.add_(1.0)

    def fail_inside() -> None:
        with average.swapped_in():
            assert torch.equal(module.weight, before["weight"])
            assert module.weight.data_ptr() == place
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(module.weight, before["weight"] + 1.0)
    assert torch.equal(module.bias, before["bias"])
    with pytest.raises(AssertionError, match="must be the average"):
        average.state_dict()
    average.swap_in()
    with average.swapped_in():
        average.swap_in()
    assert torch.equal(module.weight, before["weight"])


def test_a_layer_of_two_names_is_averaged_once_and_a_mask_of_infinities_never() -> None:
    module = nn.ModuleDict({"first": nn.Linear(1, 1)})
    module["second"] = module["first"]
    mask = torch.full((2, 2), -torch.inf).triu(1)
    module.register_buffer("mask", mask.clone())
    weight = module.get_parameter("first.weight")
    nn.init.constant_(weight, 1.0)
    average = ExponentialMovingAverage(module, lambda update: 0.75, 1)
    nn.init.constant_(weight, 3.0)
    average.update()
    with average.swapped_in():
        assert weight.item() == 1.5  # 0.75 * 1 + 0.25 * 3
    assert weight.item() == 3.0
    assert torch.equal(module.get_buffer("mask"), mask)


AVERAGE = "train.average={decay: 0.9, every: 2}"


def training(images: Path, *changes: str) -> list[str]:
    return tiny.arguments(images, 3, 3, AVERAGE, *changes)


def final(cwd: Path) -> checkpoint.Checkpoint:
    newest = checkpoint.newest(cwd / "runs/run/checkpoints")
    assert newest is not None
    return newest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "boundaries", "changes"),
    [(1, (1, 4), ("checkpoint.background=true", "train.micro_batch_size=5")), (2, (4,), (NORM,))],
)
def test_stopping_changes_no_bit(
    tmp_path: Path, images: Path, world_size: int, boundaries: tuple[int, ...], changes: tuple[str, ...]
) -> None:
    """With and without BatchNorm; early stopping, best checkpoint and clipping are on."""
    arguments = training(images, *changes, "train.early_stopping={metric: val/loss, patience: 5}")
    whole, stopped = tiny.in_folder(tmp_path, "whole"), tiny.in_folder(tmp_path, "stopped")
    assert ranks.train(arguments, world_size=world_size, cwd=whole) == [0] * world_size, ranks.console(whole)
    for boundary in boundaries:
        codes = ranks.run(stopping.train_until, arguments, boundary, world_size=world_size, cwd=stopped)
        assert codes == [EXIT_STOPPED] * world_size, ranks.console(stopped)
    assert ranks.train(arguments, world_size=world_size, cwd=stopped) == [0] * world_size, ranks.console(stopped)
    tiny.assert_same_result(stopped, whole)
    a, b = (final(cwd).trainer_state() for cwd in (whole, stopped))
    assert a["averaged_steps"] == b["averaged_steps"] == 12
    assert all(torch.equal(a["raw_weights"][name], b["raw_weights"][name]) for name in a["raw_weights"])


def test_what_is_kept_hashed_and_tested_is_the_average(tmp_path: Path, images: Path) -> None:
    """The weights beside it are those of the same run without an average; the best checkpoint is not the last."""
    averaged, plain = tiny.in_folder(tmp_path, "averaged"), tiny.in_folder(tmp_path, "plain")
    first = ("checkpoint.best={metric: train/loss}", "optimizer.maximize=true")  # so that the best is the first
    assert ranks.train(training(images, *first), cwd=averaged) == [0], ranks.console(averaged)
    assert ranks.train(tiny.arguments(images, 3, 3, *first), cwd=plain) == [0], ranks.console(plain)
    last = final(averaged)
    assert weights_sha256(last.model_state()) == tiny.summary(averaged)["weights_sha256"]
    assert tiny.summary(averaged)["weights_sha256"] != tiny.summary(plain)["weights_sha256"]
    weights = last.trainer_state()["raw_weights"]
    assert weights_sha256(weights) == tiny.summary(plain)["weights_sha256"]
    assert "raw_weights" not in final(plain).trainer_state()

    best = tiny.summary(averaged)["best"]["step"]
    assert best < last.step
    trained = load_model(averaged / "runs/run", device="cpu")
    kept = load_file(averaged / f"runs/run/checkpoints/{name_of(best)}/model.safetensors")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in trained.module.state_dict().items())
    paths = sorted((images / "test").glob("*/*.png"))
    probabilities = [trained.predict(str(path))[0].probabilities[path.parent.name] for path in paths]
    assert tiny.summary(averaged)["test"]["loss"] == pytest.approx(
        float(-torch.tensor(probabilities).log().mean()), rel=1e-4
    )


@pytest.mark.slow
def test_elastic_runs_have_the_same_average_on_any_number_of_ranks(tmp_path: Path, images: Path) -> None:
    one, two = tiny.in_folder(tmp_path, "1"), tiny.in_folder(tmp_path, "2")
    elastic = ["train.reproducibility=elastic", "train.virtual_shards=4"]
    arguments = tiny.arguments(images, 2, 4, AVERAGE, NORM, *elastic)
    for world_size, cwd in ((1, one), (2, two)):
        assert ranks.train(arguments, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
    tiny.assert_same_result(two, one)


def test_a_failed_run_tells_of_the_average_that_it_kept(tmp_path: Path) -> None:
    arguments = [*TRAINING, AVERAGE]
    faults = {4: (0, float("nan"))}
    assert ranks.run(train_with_faults, arguments, faults, world_size=1, cwd=tmp_path) == [1]
    assert tiny.summary(tmp_path)["status"] == "failed"
    assert tiny.summary(tmp_path)["weights_sha256"] == weights_sha256(final(tmp_path).model_state())
