"""Features of frozen layers, computed once: the same bits as without, no frozen pass in a step, and why not else."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from accelerate import Accelerator
from parts import Rows, build_trainer, make_dataset, resolved
from torch import Tensor, nn

from trainlib.data.batches.feature_loader import FeatureLoader
from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.distributed import process_group
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.errors import UserError
from trainlib.models.forward.bitwise_probe import BitwiseProbe
from trainlib.models.own_parts.custom_parts import CustomParts
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.training.hooks import HookList, TrackerHook
from trainlib.training.trainer import Trainer
from trainlib.training.tuning import feature_cache

VGG = {"name": "vgg16", "width": 0.0625, "freeze": "features"}  # dropout is on
RESNET = {"name": "resnet18", "freeze": "backbone"}
TRAIN = {"epochs": 3, "batch_size": 12}


def never() -> bool:
    return False


def build(
    accelerator: Accelerator,
    model: dict[str, Any],
    train: dict[str, Any] = TRAIN,
    *,
    choice: str | bool = True,
    dataset: Dataset | None = None,
    stop_requested: Callable[[], bool] = never,
    heartbeat: Callable[[], None] = lambda: None,
    **more: Any,
) -> Trainer:
    """A run over 44 samples of noise, of which 4 validate."""
    config = resolved(
        {
            "data": {"name": "synthetic", "val_fraction": 0.1, "split": "random"},
            "model": model | {"cache_features": choice},
            "optimizer": {"name": "AdamW", "lr": 1e-3},
            "train": train,
            "tracking": {"log_every": 1},
        }
        | more
    )
    caching = partial(feature_cache.cache_features, steps_done=0, stop_requested=stop_requested, heartbeat=heartbeat)
    return build_trainer(config, dataset or make_dataset(44), accelerator, None, CustomParts(), caching)


def trained(trainer: Trainer) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Train and test; the rows and the final state."""
    rows = Rows()
    trainer.hooks = HookList([TrackerHook(rows)])
    assert trainer.run(StopConsensus(StopFlag(), None))
    trainer.test()
    return rows.without_times(), trainer.state.classifier.module.state_dict()


def is_cached(trainer: Trainer) -> bool:
    return isinstance(trainer.samples.train, FeatureLoader)


@pytest.fixture
def accelerator(request: pytest.FixtureRequest) -> Iterator[Accelerator]:
    with process_group.joined(resolved({"train": {**TRAIN, **getattr(request, "param", {})}}).train) as joined:
        yield joined


@pytest.mark.parametrize(
    ("model", "train", "more"),
    [
        (VGG, {}, {}),
        (VGG | {"freeze": "backbone"}, {"micro_batch_size": 5}, {}),
        (VGG | {"freeze": "backbone", "head": "append"}, {}, {}),
        (RESNET, {"micro_batch_size": 5}, {"loss": {"weight": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}}),
        (RESNET | {"head": "append"}, {"clip_grad_norm": 0.1}, {"tracking": {"health": {"every": "2st"}}}),
        (VGG, {"reproducibility": "elastic", "virtual_shards": 4}, {}),
    ],
)
def test_the_same_bits(
    accelerator: Accelerator, model: dict[str, Any], train: dict[str, Any], more: dict[str, Any]
) -> None:
    cached, plain = (build(accelerator, model, TRAIN | train, choice=choice, **more) for choice in (True, False))
    assert is_cached(cached)
    assert not is_cached(plain)
    (rows, state), (expected_rows, expected) = trained(cached), trained(plain)
    assert rows == expected_rows
    assert [row["split"] for row in rows if row.get("scope") != "step"] == ["train", "val"] * 3 + ["test"]
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (VGG, {"classifier"}),
        (VGG | {"freeze": "backbone"}, {"classifier.6", "classifier"}),  # the CPU's kernels decide
        (RESNET, {"fc"}),
        (RESNET | {"head": "append"}, {"fc.1", "fc"}),
        ({"name": "convnext_tiny", "freeze": "backbone"}, {"classifier.2", "classifier"}),
        ({"name": "cifar10_cnn", "freeze": "features"}, {"classifier"}),
    ],
)
def test_what_is_left_to_train(accelerator: Accelerator, model: dict[str, Any], parts: set[str]) -> None:
    trainer = build(accelerator, model)
    submodule = accelerator.unwrap_model(trainer.state.model)
    assert {name for name, module in trainer.state.classifier.module.named_modules() if module is submodule} <= parts


@pytest.mark.parametrize("accelerator", [{"precision": "bf16"}], indirect=True)
def test_the_same_bits_in_bf16(accelerator: Accelerator) -> None:
    train = TRAIN | {"precision": "bf16"}
    cached, plain = (build(accelerator, VGG, train, choice=choice) for choice in (True, False))
    assert is_cached(cached)
    assert next(cached.samples.train.images.batches([torch.arange(12)])).dtype == torch.bfloat16
    (rows, state), (expected_rows, expected) = trained(cached), trained(plain)
    assert rows == expected_rows
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_the_bits_of_a_plain_loop_and_what_is_frozen_stays(accelerator: Accelerator) -> None:
    """BatchNorm of the backbone neither learns nor uses its batch."""
    dataset = make_dataset(44)
    train = {"epochs": 2, "batch_size": 12}
    trainer = build(accelerator, RESNET, train, dataset=dataset, optimizer={"name": "SGD", "lr": 0.1}, scheduler=None)
    assert is_cached(trainer)
    plain = copy.deepcopy(trainer.state.classifier.module)
    initial = copy.deepcopy(plain.state_dict())
    _, state = trained(trainer)

    plain.eval()
    optimizer = torch.optim.SGD(plain.get_submodule("fc").parameters(), lr=0.1)
    for epoch in range(2):
        for ids_N in trainer.plan.batches(epoch):
            images_NCHW = (next(dataset.train.images.batches([ids_N])).float() / 255 - 0.5) / 0.25
            loss = nn.functional.cross_entropy(plain(images_NCHW), dataset.train.labels_N[ids_N])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-6)
        assert torch.equal(state[name], initial[name]) != name.startswith("fc.")


def test_frozen_layers_are_not_called_in_steps(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bool]] = []
    beats: list[int] = []

    def counted(trainer: Trainer) -> list[tuple[int, bool]]:
        layer = trainer.state.classifier.module.get_submodule("features.0")
        hook = layer.register_forward_hook(lambda module, given, _: calls.append((len(given[0]), module.training)))
        calls.clear()
        assert trainer.run(StopConsensus(StopFlag(), None))
        hook.remove()
        return list(calls)

    trainer = build(accelerator, VGG, heartbeat=lambda: beats.append(1))
    assert beats
    assert counted(trainer) == []
    layer = trainer.state.classifier.module.get_submodule("features.0")
    layer.register_forward_hook(lambda module, given, _: calls.append((len(given[0]), module.training)))
    trainer.test()
    assert calls == [(20, False)]
    assert counted(build(accelerator, VGG, choice=False)) == ([(12, False)] * 3 + [(4, False)] * 2) * 3

    # Where the last batch, of 4 like the validation's, had other bits, it would be computed each time.
    compare = BitwiseProbe.compare

    def differing(self: BitwiseProbe, *args: Any) -> Any:
        outcome = compare(self, *args)
        outcome.differing["classifier"].add(4)
        return outcome

    monkeypatch.setattr(BitwiseProbe, "compare", differing)
    trainer = build(accelerator, VGG)
    assert counted(trainer) == [(4, False)] * 2 * 3
    state, expected = trainer.state.classifier.module.state_dict(), trained(build(accelerator, VGG, choice=False))[1]
    assert all(torch.equal(state[name], expected[name]) for name in state)


def train_both(runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """In each rank: train with and without a cache. Raises where a bit differs."""
    with process_group.joined(resolved({"train": TRAIN}).train) as accelerator:
        for model, train in runs:
            cached, plain = (
                build(accelerator, model, {"epochs": 2} | train, choice=choice) for choice in (True, False)
            )
            assert is_cached(cached)
            (rows, state), (expected_rows, expected) = trained(cached), trained(plain)
            assert rows == expected_rows
            assert all(torch.equal(state[name], expected[name]) for name in state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world_size", "runs"),
    [
        # 40 samples: the last batch of 13 is of a single one, and leaves the other ranks none.
        (2, [(VGG, {"batch_size": 13}), (RESNET, {"batch_size": 12, "micro_batch_size": 3})]),
        (3, [(VGG, {"batch_size": 13, "reproducibility": "elastic", "virtual_shards": 4}), (VGG, {"batch_size": 2})]),
    ],
)
def test_several_ranks(tmp_path: Path, world_size: int, runs: list[Any]) -> None:
    assert ranks.run(train_both, runs, world_size=world_size, cwd=tmp_path) == [0] * world_size, ranks.console(tmp_path)


def reason(accelerator: Accelerator, caplog: pytest.LogCaptureFixture, **arguments: Any) -> str:
    """Why there is no cache, as the log has it; `true` says the same as an error."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "trainlib"):
        assert not is_cached(
            build(accelerator, choice="auto", **{"train": {"epochs": 9, "batch_size": 12}} | arguments)
        )
    prefix = "what the frozen layers give is not kept: "
    (message,) = [message for message in caplog.messages if message.startswith(prefix)]
    return message.removeprefix(prefix)


def test_why_not(accelerator: Accelerator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    why = partial(reason, accelerator, caplog)
    augmented = {"name": "synthetic", "augment": {"flip": True}}
    assert why(model=VGG, data=augmented) == "data.augment makes other images in every epoch"
    assert why(model=VGG, train={"epochs": 1, "batch_size": 12}).endswith("than it saves in 1 epochs of 44 images")
    squeezenet = {"name": "squeezenet1_1", "freeze": "backbone"}
    assert why(model=squeezenet) == "the model goes on behind classifier"
    with pytest.raises(UserError, match=r"model.cache_features: got true, but the model goes on behind classifier"):
        build(accelerator, squeezenet)

    class Fetched:
        """Images of one's own: perhaps others each time."""

        def __init__(self) -> None:
            self.batches = make_dataset(44).train.images.batches

        def __len__(self) -> int:
            return 44

        def to(self, device: torch.device) -> Fetched:
            return self

    dataset = make_dataset(44)
    fetched = replace(dataset, train=ImageSet(Fetched(), dataset.train.labels_N))
    assert "a data set given in Python" in why(model=VGG, dataset=fetched)

    with monkeypatch.context() as patch:
        patch.setenv("TRAINLAUNCH_END_TIME", str(time.time()))
        assert "the job has" in why(model=VGG)
    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "MEMORY_FRACTION", 0.0)
        assert "there is too little memory" in why(model=VGG)
    with monkeypatch.context() as patch:
        patch.setattr(nn.AdaptiveAvgPool2d, "forward", lambda self, x: x.mean((2, 3)) + x.mean())
        assert why(model=RESNET) == "what fc gets has other bits in batches of [4, 12] images than of 12"
        patch.setattr(nn.AdaptiveAvgPool2d, "forward", lambda self, x: x.mean((2, 3)) + torch.rand(()))
        assert why(model=RESNET) == "what comes before fc gives other bits alone than inside of the model"
    with monkeypatch.context() as patch:
        patch.setattr("trainlib.models.classifier.freeze", _freeze_all_but_first_and_last)
        assert why(model=RESNET) == "layers all over the model are trained"

    with caplog.at_level(logging.INFO, "trainlib"):
        caplog.clear()
        assert not is_cached(build(accelerator, {"name": "cifar10_cnn"}, choice="auto"))
    assert not [message for message in caplog.messages if "what the frozen layers give" in message]


def _freeze_all_but_first_and_last(module: nn.Module, heads: Sequence[str], freeze: str | None) -> frozenset[str]:
    module.requires_grad_(False)
    module.get_submodule("conv1").requires_grad_(True)
    module.get_submodule(heads[0]).requires_grad_(True)
    return frozenset()
