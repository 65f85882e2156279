"""1, 2 and 4 gloo ranks: the same samples, augmentation, learning rates and losses; evaluation exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from parts import make_dataset
from soak import only_in_soak

from trainlib.data.augment.augmentation import Augmentation
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.batches.loader import BatchLoader
from trainlib.data.batches.plan import Plan
from trainlib.data.batches.rank_slice import RankSlice
from trainlib.runs.directory import RunDirectory

PREPROCESS = Preprocess((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 32)

TRAINING = [
    "quickstart",
    "name=run",
    "data.limit=97",
    "data.val_fraction=0.02",
    "data.augment={flip: true, crop_padding: 4}",
    "optimizer={name: SGD, lr: 0.01, momentum: 0.9}",
    "scheduler={name: CosineAnnealingLR, interval: step}",
    "train.epochs=2",
    "train.batch_size=18",  # 5 batches of 18 and one of 7: 4 ranks get 4, 5, 4, 5 and 1, 2, 2, 2 samples
    "tracking={log_every: 1, tensorboard: false}",
]


def rows_of(cwd: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (cwd / "runs/run/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_ranks_together_see_what_one_process_sees(micro_batch_size: int | None) -> None:
    dataset = make_dataset(97)
    plan = Plan(torch.arange(97), 0, 18, shuffle=True, drop_last=False, total_steps=6)
    augmentation = Augmentation(seed=0, flip=True, crop_padding=4)

    def seen(rank: int, world_size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        rank_slice = RankSlice(rank, world_size, micro_batch_size)
        batches = BatchLoader(dataset.train, PREPROCESS, rank_slice, torch.device("cpu"))
        steps = batches.train_batches(plan.batches(1), 1, augmentation)
        return [
            (
                torch.cat([micro_batch.images_NCHW[: len(micro_batch.targets)] for micro_batch in micro_batches]),
                torch.cat([micro_batch.targets.labels_N for micro_batch in micro_batches]),
            )
            for micro_batches in steps
        ]

    alone = seen(0, 1)
    assert len(alone) == 6
    for world_size in (2, 4):
        parts = [seen(rank, world_size) for rank in range(world_size)]
        for step, (images, labels) in enumerate(alone):
            assert torch.equal(torch.cat([part[step][0] for part in parts]), images)
            assert torch.equal(torch.cat([part[step][1] for part in parts]), labels)


WEIGHTED = "loss={weight: [1,2,3,4,5,1,2,3,4,5]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param([], marks=only_in_soak),
        [WEIGHTED, "train.micro_batch_size=2"],
        pytest.param([WEIGHTED], marks=only_in_soak),
    ],
)
def test_losses_and_learning_rates_do_not_depend_on_the_world_size(tmp_path: Path, changes: list[str]) -> None:
    rows = {}
    for world_size in (1, 2, 4):
        cwd = tmp_path / str(world_size)
        cwd.mkdir()
        codes = ranks.train([*TRAINING, *changes], world_size=world_size, cwd=cwd)
        assert codes == [0] * world_size, ranks.console(cwd)
        rows[world_size] = rows_of(cwd)
        assert RunDirectory(cwd / "runs/run").summary()["world_size"] == world_size
    assert len(rows[1]) == 2 * (6 + 1 + 1) + 1  # steps, epoch and validation, twice; the test
    for world_size in (2, 4):
        for ours, alone in zip(rows[world_size], rows[1], strict=True):
            keys = ("step", "epoch", "split", "scope", "count", "lr")
            assert [ours.get(key) for key in keys] == [alone.get(key) for key in keys]
            assert ours["loss"] == pytest.approx(alone["loss"], rel=1e-5)
            if ours["split"] == "train":
                assert ours["accuracy"] == alone["accuracy"]


SIZES = (1, 5, 97, 100)


def evaluate_sizes() -> None:
    """In each rank: evaluate the same model on test sets of several sizes; rank 0 writes what came out."""
    from parts import build_trainer

    from trainlib.distributed import process_group

    config = _config()
    with process_group.joined(config.train) as accelerator:
        found = []
        for size in SIZES:
            trainer = build_trainer(config, make_dataset(40, size), accelerator, None)
            found.append(trainer.test().asdict())
        if accelerator.is_main_process:
            Path("found.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_several_ranks_evaluate_the_model_that_the_checkpoint_holds(tmp_path: Path) -> None:
    """Each rank gathers BatchNorm statistics of its own; the ones that count are those that are saved."""
    from safetensors.torch import load_file
    from torchvision.models import shufflenet_v2_x0_5

    from trainlib.data.identity.splits import split_validation
    from trainlib.data.sources.arrays.synthetic import make_synthetic

    training = [word for word in TRAINING if not word.startswith(("train", "data.val"))]
    training += ["model={name: shufflenet_v2_x0_5}", "train={epochs: 1, batch_size: 30}", "data.val_fraction=0.01"]
    assert ranks.train(training, world_size=2, cwd=tmp_path) == [0, 0], ranks.console(tmp_path)
    (val,) = [row for row in rows_of(tmp_path) if row["split"] == "val"]

    model = shufflenet_v2_x0_5(num_classes=10).eval()
    (saved,) = (tmp_path / "runs/run/checkpoints").iterdir()
    model.load_state_dict(load_file(saved / "model.safetensors"))
    data = make_synthetic()
    _, ids = split_validation(data.train.labels_N, 0.01, 0)
    (images,) = data.train.images.batches([ids])
    mean, std = torch.tensor(data.mean).view(3, 1, 1), torch.tensor(data.std).view(3, 1, 1)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model((images / 255 - mean) / std), data.train.labels_N[ids])
    assert val["count"] == len(ids)
    assert val["loss"] == pytest.approx(loss.item(), rel=1e-5)


def _config() -> Any:
    from parts import resolved

    return resolved({"train": {"epochs": 1, "batch_size": 16}, "data": {"name": "synthetic"}})


@pytest.mark.slow
def test_evaluation_is_exact_at_every_size_and_world_size(tmp_path: Path) -> None:
    found = {}
    for world_size in (1, 2, 4):
        cwd = tmp_path / str(world_size)
        cwd.mkdir()
        assert ranks.run(evaluate_sizes, world_size=world_size, cwd=cwd) == [0] * world_size, ranks.console(cwd)
        found[world_size] = json.loads((cwd / "found.json").read_text())
    for index, size in enumerate(SIZES):
        expected = oracle(size)
        for world_size in (1, 2, 4):
            metrics = found[world_size][index]
            assert metrics["count"] == size
            assert metrics["accuracy"] == expected["accuracy"]
            assert metrics["loss"] == pytest.approx(expected["loss"], abs=1e-6)


def oracle(size: int) -> dict[str, float]:
    """torchmetrics and torch's own loss over the whole set at once, in float64."""
    from torchmetrics.functional.classification import multiclass_accuracy

    from trainlib.training.build.model import build_classifier

    dataset = make_dataset(40, size)
    module = build_classifier(_config(), 10, torch.device("cpu")).module.double().eval()
    images = torch.cat([dataset.test.images.batches([torch.arange(size)]).__next__()])
    labels = dataset.test.labels_N
    with torch.no_grad():
        logits = module((images.double() / 255 - 0.5) / 0.25)
    accuracy = multiclass_accuracy(logits, labels, num_classes=10, average="micro").item()
    num_correct = round(accuracy * size)
    return {"accuracy": num_correct / size, "loss": torch.nn.functional.cross_entropy(logits, labels).item()}
