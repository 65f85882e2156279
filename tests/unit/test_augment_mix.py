"""MixUp and CutMix: torchvision's pixels and labels, exact however a global batch is cut."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import make_dataset
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from trainlib.config import DataConfig, LossConfig
from trainlib.data.augment.augmentation import Augmentation
from trainlib.data.augment.mix import Box, Mixing, Mixture, mix
from trainlib.data.augment.policies.jitter import ColorJitter
from trainlib.data.augment.policies.policy import RandAugment
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.batches.loader import BatchLoader, MicroBatch
from trainlib.data.batches.plan import Plan
from trainlib.data.batches.rank_slice import RankSlice
from trainlib.data.datasets.dataset import ImageSet
from trainlib.data.datasets.images import InMemoryImages, StreamedImages
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.pictures.files import PlainFiles
from trainlib.data.targets import Targets
from trainlib.models.losses import Objective
from trainlib.training.tuning.memory import split_to_limit

CPU = torch.device("cpu")
PREPROCESS = Preprocess((0.5, 0.4, 0.3), (0.25, 0.2, 0.3), 32)
BOTH = Mixing(3, mixup=0.2, cutmix=1.0)


def rolled(values: Tensor) -> Tensor:
    """The batch with its last element before the first, as `mix` takes it."""
    return torch.cat([values[-1:], values])


@pytest.mark.parametrize("step", range(8))
def test_pixels_and_labels_are_those_of_torchvision(step: int) -> None:
    images, labels = torch.randn(6, 3, 20, 28), torch.tensor([0, 3, 1, 1, 2, 0])
    mixture = BOTH.draw(step, 20, 28)
    params: dict[str, Any] = {"labels": labels, "batch_size": 6, "lam": mixture.weight, "lam_adjusted": mixture.weight}
    transform: Any = v2.MixUp(num_classes=4) if mixture.box is None else v2.CutMix(num_classes=4)
    expected = transform.transform(images, params | {"box": mixture.box})
    assert torch.equal(mix(rolled(images), mixture), expected)
    # With the cross entropy of probabilities, torchvision's mixed labels mean the same loss as ours.
    logits = torch.randn(6, 4, dtype=torch.float64)
    objective = Objective(LossConfig(name="CrossEntropyLoss", activation="none"), 4, CPU)
    other = Targets(labels.roll(1), labels.roll(1))
    targets = Targets(labels, labels).mixed_with(other, mixture.weight)
    loss, denominator = objective.of(logits, targets)
    theirs = transform.transform(labels, params).double()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, theirs), rtol=1e-6, atol=0)
    torch.testing.assert_close(targets.dense(4, torch.float64), theirs, rtol=1e-6, atol=1e-7)
    assert denominator == pytest.approx(6)


def test_both_take_turns_and_the_box_has_the_share_of_the_weight() -> None:
    drawn = [BOTH.draw(step, 32, 48) for step in range(600)]
    boxes = [mixture for mixture in drawn if mixture.box is not None]
    assert 230 < len(boxes) < 370
    for weight, box in boxes:
        assert box is not None
        assert 0 <= box.left <= box.right <= 48
        assert 0 <= box.top <= box.bottom <= 32
        assert weight == 1 - (box.right - box.left) * (box.bottom - box.top) / (32 * 48)
    assert BOTH.draw(7, 32, 48) == Mixing(3, 0.2, 1.0).draw(7, 32, 48)
    assert BOTH.draw(7, 32, 48) != Mixing(4, 0.2, 1.0).draw(7, 32, 48)
    assert {Mixing(3, 0.2).draw(step, 8, 8).box for step in range(50)} == {None}


def test_weights_are_exact_in_float32() -> None:
    """So that a weight and its complement add up to 1 on every device."""
    for step in range(100):
        weight = Mixing(0, 0.3).draw(step, 8, 8).weight
        assert torch.tensor(weight).item() == weight
        assert torch.tensor(1 - weight).item() == 1 - weight


def all_on(seed: int = 0) -> Augmentation:
    changes = (RandAugment(), ColorJitter(0.4, 0.4, 0.4, 0.1))
    return Augmentation(seed, True, 4, vertical_flip=True, changes=changes, erasing=0.5, mixing=BOTH)


def steps_of(rank: int, world_size: int, size: int | None, shards: int | None = None) -> list[list[MicroBatch]]:
    """The micro-batches of epoch 1 of 97 samples in batches of 18, the last one of 7."""
    plan = Plan(torch.arange(97), 0, 18, shuffle=True, drop_last=False, total_steps=12)
    loader = BatchLoader(make_dataset(97).train, PREPROCESS, RankSlice(rank, world_size, size, shards), CPU)
    batches, draws = plan.batches_and_draws(1)
    return list(loader.train_batches(batches, 1, all_on(), draws, first_step=6))


def together(parts: list[list[MicroBatch]]) -> tuple[Tensor, Tensor, Tensor]:
    pieces = [piece for part in parts for piece in part if not piece.is_empty]
    assert all(piece.targets.other is not None for piece in pieces)
    return (
        torch.cat([piece.images_NCHW for piece in pieces]),
        torch.cat([piece.targets.labels_N for piece in pieces]),
        torch.cat([piece.targets.other.labels_N for piece in pieces if piece.targets.other is not None]),
    )


@functools.cache
def steps_of_one_process() -> list[list[MicroBatch]]:
    return steps_of(0, 1, None)


@pytest.mark.parametrize(("size", "shards"), [(None, None), (3, None), (None, 8), (2, 8)])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_mix_what_one_process_mixes(world_size: int, size: int | None, shards: int | None) -> None:
    alone = steps_of_one_process()
    ranks = [steps_of(rank, world_size, size, shards) for rank in range(world_size)]
    for step, whole in enumerate(alone):
        images, labels, others = together([whole])
        assert torch.equal(others, labels.roll(1))
        for ours, expected in zip(together([rank[step] for rank in ranks]), (images, labels, others), strict=True):
            assert torch.equal(ours, expected)
        weights = {piece.targets.weight for rank in ranks for piece in rank[step] if piece.targets.other is not None}
        assert weights == {BOTH.draw(6 + step, 32, 32).weight}


def test_an_epoch_that_begins_in_its_middle_goes_on_with_the_same_images() -> None:
    plan = Plan(torch.arange(97), 0, 18, shuffle=True, drop_last=False, total_steps=12)
    loader = BatchLoader(make_dataset(97).train, PREPROCESS, RankSlice(0, 1, None), CPU)
    rest = list(loader.train_batches(plan.batches(1)[3:], 1, all_on(), first_step=9))
    for ours, expected in zip(rest, steps_of(0, 1, None)[3:], strict=True):
        for one, other in zip(together([ours]), together([expected]), strict=True):
            assert torch.equal(one, other)


def test_streamed_images_are_mixed_as_resident_ones(tmp_path: Path) -> None:
    """Each is decoded once for itself, and some a second time for the sample behind them."""
    pixels = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
    paths = [str(tmp_path / f"{i:02d}.png") for i in range(20)]
    for path, picture in zip(paths, pixels, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    streamed = StreamedImages(PlainFiles(paths), PictureReader.of(DataConfig(image_size=32)))
    plan = Plan(torch.arange(20), 0, 8, shuffle=True, drop_last=False, total_steps=3)

    def loaded(images: InMemoryImages | StreamedImages) -> list[list[MicroBatch]]:
        loader = BatchLoader(ImageSet(images, torch.arange(20) % 3), PREPROCESS, RankSlice(0, 2, 3), CPU)
        return list(loader.train_batches(plan.batches(0), 0, all_on()))

    for ours, expected in zip(loaded(streamed), loaded(InMemoryImages(pixels)), strict=True):
        for one, other in zip(together([ours]), together([expected]), strict=True):
            assert torch.equal(one, other)


def test_images_are_normalised_then_erased_then_mixed() -> None:
    """Each as if it were alone, by its own index."""
    dataset, augmentation = make_dataset(97).train, all_on()
    [[piece], *_] = steps_of(0, 1, None)
    ids = piece.ids_N
    [images] = dataset.images.batches([ids])
    values = [
        augmentation.erase(PREPROCESS(augmentation(images[i : i + 1], ids[i : i + 1], 1)), ids[i : i + 1], 1)
        for i in range(len(ids))
    ]
    assert torch.equal(piece.images_NCHW, mix(rolled(torch.cat(values)), BOTH.draw(6, 32, 32)))


def test_a_micro_batch_that_is_split_keeps_its_second_labels() -> None:
    [[piece], *_] = steps_of(0, 1, None)
    parts = split_to_limit([piece], 5)
    assert [len(part.ids_N) for part in parts] == [5, 5, 5, 3]
    for ours, expected in zip(together([list(parts)]), together([[piece]]), strict=True):
        assert torch.equal(ours, expected)


def test_accuracy_counts_the_label_of_larger_weight() -> None:
    for pieces in steps_of(0, 1, None):
        for piece in pieces:
            targets = piece.targets
            assert targets.other is not None
            likely = targets if targets.weight >= 0.5 else targets.other
            assert torch.equal(targets.likely_labels, likely.labels_N)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT TESTED: the same bits on CPU and GPU, without a GPU")
def test_a_gpu_gives_the_same_bits() -> None:
    plan = Plan(torch.arange(97), 0, 18, shuffle=True, drop_last=False, total_steps=12)
    loader = BatchLoader(make_dataset(97).train, PREPROCESS, RankSlice(0, 1, None), torch.device("cuda"))
    on_gpu = loader.train_batches(plan.batches(1), 1, all_on(), first_step=6)
    for ours, expected in zip(on_gpu, steps_of(0, 1, None), strict=True):
        for one, other in zip(together([ours]), together([expected]), strict=True):
            assert torch.equal(one.cpu(), other)


def test_a_box_of_no_pixels_leaves_the_images_alone() -> None:
    images = torch.randn(5, 3, 8, 8)
    for mixture in (Mixture(1.0, None), Mixture(1.0, Box(3, 3, 3, 3))):
        assert torch.equal(mix(images, mixture), images[1:])
