"""ElasticReducer mode: the same bits, of weights, metrics and decisions, on any number of ranks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch
from parts import build_trainer, make_dataset, resolved, tutorial_cnn
from soak import SOAK, only_in_soak
from torch import Tensor

from trainlib.data.batches.rank_slice import shards_of_rank, split_range
from trainlib.distributed import process_group
from trainlib.distributed.allreduce.elastic import ElasticReducer, Node, TreeSum, cover
from trainlib.errors import EXIT_USER_ERROR, RanksDifferError, UserError

ELASTIC = ["train.reproducibility=elastic"]
# 41 images: three batches of 12 and one of 5, of which three of the eight shards get nothing.
UNEVEN = ["data.limit=41"]
PLATEAU = [
    "scheduler={name: ReduceLROnPlateau, patience: 0, factor: 0.5, metric: val/loss}",
    "train.early_stopping={metric: val/loss, patience: 2}",
    "train.epochs=12",
]
CNN = "model={name: cifar10_cnn}"
GROUPS = "optimizer={name: AdamW, lr: 1e-3, param_groups: [{match: 'classifier.1.*', lr: 1e-2}]}"
SGD = "optimizer={name: SGD, lr: 0.05, momentum: 0.9}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("elastic") / "images"
    tiny.make_images(root)
    return root


def tree_of(values: list[Tensor]) -> Tensor:
    """The sum that the mode promises, written as one recursion: the left half is the largest power of two."""
    if len(values) == 1:
        return values[0]
    half = 2 ** (math.ceil(math.log2(len(values))) - 1)
    return tree_of(values[:half]) + tree_of(values[half:])


@pytest.mark.parametrize("num_shards", [1, 2, 3, 6, 7, 8, 12, 16, 17])
def test_the_tree_is_the_same_whoever_adds_up_its_nodes(num_shards: int) -> None:
    """For every world size: ranks add up their shards, then one of them what the ranks came to. Floats of all sizes."""
    generator = torch.Generator().manual_seed(num_shards)
    values = [torch.randn(50, generator=generator) * 10.0 ** (shard % 7) for shard in range(num_shards)]
    expected = tree_of(values)
    assert num_shards < 4 or not torch.equal(expected, sum(values[1:], values[0])), "any order would do"
    for world_size in range(1, num_shards + 1):
        whole = TreeSum()
        for rank in range(world_size):
            shards = shards_of_rank(num_shards, world_size, rank)
            own, held = TreeSum(), 0
            for shard in shards:
                own.add(Node(0, shard), values[shard].clone())
                held = max(held, len(own.vectors))
            assert own.nodes == cover(shards)
            assert held <= 2 * math.log2(num_shards) + 1
            for node, vector in zip(own.nodes, own.vectors, strict=True):
                whole.add(node, vector)
        assert torch.equal(whole.total(), expected), world_size


def test_steps_are_those_of_a_plain_loop_over_the_shards() -> None:
    """An oracle in plain PyTorch: the gradient of each shard by itself, added up in the tree; eight steps."""
    shards, batch_size = 4, 10
    dataset = make_dataset(33)  # batches of 10, 10, 10 and 3
    train = {"epochs": 2, "batch_size": batch_size, "reproducibility": "elastic", "virtual_shards": shards}
    config = resolved(
        {
            "train": train,
            "data": {"name": "synthetic", "val_fraction": 0, "augment": {}},
            "model": {"name": "cifar10_cnn"},
        }
        | {"optimizer": {"name": "SGD", "lr": 0.01, "momentum": 0.9}, "scheduler": None}
    )
    module = tutorial_cnn()
    with process_group.joined(config.train) as accelerator:
        trainer = build_trainer(config, dataset, accelerator, None)
        ours = trainer.state.classifier.module
        first = next(ours.parameters())  # kernels add in an order that depends on the layout
        module.to(memory_format=torch.contiguous_format if first.is_contiguous() else torch.channels_last)
        module.load_state_dict(dict(zip(module.state_dict(), ours.state_dict().values(), strict=True)))
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
        batches = [batch for epoch in range(2) for batch in trainer.plan.batches(epoch)]
        scale = torch.tensor(1 / (255 * dataset.std[0]))  # as images are normalised: rounded once, then applied
        for ids in batches:
            gradients = []
            for shard in range(shards):
                own = ids[split_range(len(ids), shards, shard)]
                if len(own):
                    (images,) = dataset.train.images.batches([own])
                    logits = module(images * scale - dataset.mean[0] / dataset.std[0])
                    loss = torch.nn.functional.cross_entropy(logits, dataset.train.labels_N[own])
                    gradients.append(torch.autograd.grad(loss * (len(own) / len(ids)), list(module.parameters())))
                else:
                    gradients.append(tuple(torch.full_like(p, -0.0) for p in module.parameters()))
            for parameter, *parts in zip(module.parameters(), *gradients, strict=True):
                parameter.grad = tree_of(parts)
            optimizer.step()
        trainer.run(_never())
        for expected, found in zip(module.parameters(), ours.parameters(), strict=True):
            assert torch.equal(expected, found)


def _never() -> Any:
    from trainlib.distributed.consensus.stop_consensus import StopConsensus
    from trainlib.runs.attempt.stop_request import StopFlag

    return StopConsensus(StopFlag(), None)


def train(images: Path, cwd: Path, world_size: int, *changes: str) -> Path:
    """One run in a directory of its own below `cwd`."""
    cwd = tiny.in_folder(cwd, str(world_size))
    codes = ranks.train(tiny.arguments(images, 2, 4, *ELASTIC, *changes), world_size=world_size, cwd=cwd)
    assert codes == [0] * world_size, ranks.console(cwd)
    assert tiny.summary(cwd)["world_size"] == world_size
    return cwd


@pytest.mark.parametrize(
    ("changes", "world_sizes"),
    [
        pytest.param(
            [CNN, SGD, *PLATEAU, *UNEVEN], (1, 4), id="cnn-sgd-plateau-early-stopping", marks=pytest.mark.slow
        ),
        pytest.param(UNEVEN, (1, 3), id="vgg16-dropout-adamw-clipping"),
        pytest.param(UNEVEN, (1, 4), id="vgg16-on-four-ranks", marks=only_in_soak),
        pytest.param(
            ["model={name: resnet18}", SGD, "train.virtual_shards=4", "data.limit=24", "train.epochs=1"],
            (1, 4),
            id="resnet18-batchnorm",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["train.precision=bf16", "train.micro_batch_size=1", *UNEVEN],
            (1, 2),
            id="bf16-micro-batches",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [CNN, "model.freeze=features", GROUPS, "train.virtual_shards=6", "loss={weight: [1, 3]}"],
            (1, 2, 6),
            id="frozen-groups-weights-six-shards",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_world_size_ends_with_the_same_bits(
    tmp_path: Path, images: Path, changes: list[str], world_sizes: tuple[int, ...]
) -> None:
    """Weights, best checkpoint, test metrics and every row: each run beside the one in a single process."""
    shards = next((int(word.split("=")[1]) for word in changes if word.startswith("train.virtual_shards")), 8)
    sizes = [size for size in (1, 2, 3, 4, 6, 8) if size <= shards] if SOAK else world_sizes
    alone, *others = [train(images, tmp_path, size, *changes) for size in sizes]
    if "train.epochs=12" in changes:
        assert tiny.summary(alone)["epoch"] < 12, "early stopping did not come to act"
        assert len({row["lr"] for row in tiny.rows(alone)}) > 1, "nor did ReduceLROnPlateau"
    for other in others:
        tiny.assert_same_result(other, alone)


@pytest.mark.slow
def test_exact_mode_does_depend_on_the_world_size(tmp_path: Path, images: Path) -> None:
    """The tests above could not fail if it did not."""
    digests = set()
    for size in (1, 2):
        cwd = train(images, tmp_path, size, CNN, SGD, "train.reproducibility=exact")
        digests.add(tiny.summary(cwd)["weights_sha256"])
    assert len(digests) == 2


def test_one_shard_is_exact_mode_with_one_process(tmp_path: Path, images: Path) -> None:
    """Dropout and clipping included: neither the vector that gradients are added to, nor anything else, rounds."""
    elastic = train(images, tiny.in_folder(tmp_path, "elastic"), 1, "train.virtual_shards=1")
    exact = train(images, tiny.in_folder(tmp_path, "exact"), 1, "train.reproducibility=exact")
    tiny.assert_same_result(elastic, exact)


def test_a_step_that_is_passed_over_is_so_everywhere(tmp_path: Path, images: Path) -> None:
    """A learning rate that leads to infinities: the same steps are skipped, the same is logged but for the clock."""
    changes = [CNN, "optimizer={name: SGD, lr: 1e18}", "train.on_nonfinite=skip", "train.max_nonfinite_steps=9"]
    changes += ["train.early_stopping=null", "checkpoint.best=null"]
    said = []
    for size in (1, 2):
        cwd = train(images, tmp_path, size, *changes)
        log = (cwd / "runs/run/logs/rank-0.log").read_text()
        said.append([line[line.index("step ") :] for line in log.splitlines() if "was not applied" in line])
    assert said[0] == said[1]
    assert "in virtual shard 0" in said[0][-1]
    assert tiny.rows(tmp_path / "1") == tiny.rows(tmp_path / "2")


def refused(tmp_path: Path, images: Path, world_size: int, *changes: str) -> str:
    """What rank 0 says as it refuses to train."""
    codes = ranks.train(tiny.arguments(images, 2, 4, *ELASTIC, *changes), world_size=world_size, cwd=tmp_path)
    assert codes == [EXIT_USER_ERROR] * world_size
    return ranks.console(tmp_path)


def test_parameters_of_several_types_are_refused() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).double())
    with pytest.raises(UserError, match=r"of several types \(torch.float32, torch.float64\)"):
        ElasticReducer(module, 2, 1)


def test_more_ranks_than_shards_are_refused(tmp_path: Path, images: Path) -> None:
    said = refused(tmp_path, images, 3, "train.virtual_shards=2")
    assert "train.virtual_shards: got 2, must be >= the 3 processes that there are" in said


def in_rank_1(change: Callable[[], None], arguments: list[str]) -> int:
    """The training program, with something different in rank 1."""
    import os

    if os.environ["RANK"] == "1":
        change()
    return ranks.main(arguments)


def two_threads() -> None:
    import os

    os.environ["TRAINLAUNCH_NUM_THREADS"] = "2"


def test_ranks_with_different_threads_are_refused(tmp_path: Path, images: Path) -> None:
    training = tiny.arguments(images, 2, 4, *ELASTIC)
    codes = ranks.run(in_rank_1, two_threads, training, world_size=2, cwd=tmp_path)
    assert codes == [EXIT_USER_ERROR] * 2, ranks.console(tmp_path)
    assert "num_threads is 2 on rank 1 and 1 on rank 0" in ranks.console(tmp_path)


def drift() -> None:
    """A bit of one weight flips in memory after the second step."""
    step = ElasticReducer.finish_step
    calls = []

    def finish(self: ElasticReducer) -> None:
        step(self)
        calls.append(1)
        if len(calls) == 2:
            with torch.no_grad():
                self._parameters[3].view(-1).view(torch.int32)[0] ^= 1 << 12

    ElasticReducer.finish_step = finish  # type: ignore[method-assign]


def test_ranks_that_drift_apart_are_noticed_before_the_next_checkpoint(tmp_path: Path, images: Path) -> None:
    training = tiny.arguments(images, 2, 4, *ELASTIC, CNN)
    codes = ranks.run(in_rank_1, drift, training, world_size=2, cwd=tmp_path)
    assert codes == [RanksDifferError.exit_code] * 2
    assert "features.2.bias on rank 1 is not what it is on rank 0" in ranks.console(tmp_path)
    assert not list((tmp_path / "runs/run/checkpoints").iterdir())


def with_threads(threads: str, stop_at: int | None, arguments: list[str]) -> int:
    """The training program with so many threads, asked to stop at a step boundary."""
    import os

    from trainlib.distributed.consensus.stop_consensus import StopConsensus

    os.environ["TRAINLAUNCH_NUM_THREADS"] = threads
    boundaries = iter(range(1, 1000))
    StopConsensus.agreed = lambda self, step: next(boundaries) == stop_at  # type: ignore[method-assign]
    return ranks.main(arguments)


@pytest.mark.slow
def test_a_run_goes_on_with_the_threads_that_it_began_with_and_says_that_it_is_exact(
    tmp_path: Path, images: Path
) -> None:
    """One process with two threads, then two: without being told, they take two; told otherwise, they refuse."""
    training = tiny.arguments(images, 2, 4, *ELASTIC, CNN)
    assert ranks.run(with_threads, "2", 2, training, world_size=1, cwd=tmp_path) == [75], ranks.console(tmp_path)
    assert ranks.run(with_threads, "1", None, training, world_size=2, cwd=tmp_path) == [EXIT_USER_ERROR] * 2
    assert "TRAINLAUNCH_NUM_THREADS: got 1, must be 2, with which this run began" in ranks.console(tmp_path)
    assert ranks.run(with_threads, "", None, training, world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)
    log = (tmp_path / "runs/run/logs/rank-0.log").read_text()
    assert "resuming from step 2: exact, with 2 processes as with the 1 before (elastic)" in log
    assert json.loads((tmp_path / "runs/run/environment.json").read_text())["num_threads"] == 2
