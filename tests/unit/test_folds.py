"""Folds of the training samples: each sample in one, no group in two, the same ones everywhere."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import ranks
import tiny
import torch
from parts import make_dataset
from torch import Tensor

from trainlib.config import DataConfig, load_config
from trainlib.data import Dataset, dataset_info, load_data
from trainlib.data.datasets.folds import some_pictures
from trainlib.data.identity.splits import split_fold
from trainlib.errors import ConfigError, DataError

generator = torch.Generator().manual_seed(5)
LABELS = torch.randint(0, 4, (203,), generator=generator) ** 2 // 3  # unequal classes
IDENTITIES = torch.randperm(10_000, generator=generator)[:203]
GROUPS = torch.randint(0, 40, (203,), generator=generator)


def folds(count: int = 5, seed: int = 0, **more: Tensor | str | None) -> list[list[int]]:
    return [split_fold(LABELS, fold, count, seed, **more).tolist() for fold in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("groups_N", [None, GROUPS])
@pytest.mark.parametrize("split", ["stratified", "random", "index"])
@pytest.mark.parametrize("count", [2, 5, 20])
def test_every_sample_is_in_one_fold_and_no_group_in_two(count: int, split: str, groups_N: Tensor | None) -> None:
    found = folds(count, split=split, identities_N=IDENTITIES, groups_N=groups_N)
    assert sorted(sample for fold in found for sample in fold) == list(range(203))
    assert all(found)
    if groups_N is not None:
        of_fold = [set(groups_N[fold].tolist()) for fold in found]
        assert sum(map(len, of_fold)) == len(set.union(*of_fold))


@pytest.mark.parametrize("count", [2, 5, 10])
def test_classes_and_sizes_are_even(count: int) -> None:
    found = folds(count, identities_N=IDENTITIES)
    of_class = torch.stack([torch.bincount(LABELS[fold], minlength=4) for fold in found])
    assert int((of_class.max(dim=0).values - of_class.min(dim=0).values).max()) <= 1
    sizes = list(map(len, found))
    assert max(sizes) - min(sizes) <= 1


def test_the_largest_groups_are_shared_out() -> None:
    found = folds(5, groups_N=GROUPS)
    of_class = torch.stack([torch.bincount(LABELS[fold], minlength=4) for fold in found]).double()
    assert float((of_class.sum(dim=1) / 203 - 0.2).abs().max()) < 0.08


def test_folds_are_a_function_of_seed_and_identity() -> None:
    """In whatever order the samples lie."""
    order = torch.randperm(203, generator=torch.Generator().manual_seed(1))
    here = folds(5, identities_N=IDENTITIES)
    there = [
        sorted(order[split_fold(LABELS[order], fold, 5, 0, identities_N=IDENTITIES[order])].tolist())
        for fold in range(5)
    ]
    assert here == there
    assert here != folds(5, seed=1, identities_N=IDENTITIES)


def of_configured(own: Dataset | None, count: int, **more: object) -> list[Dataset]:
    return [load_data(DataConfig(fold=f"{k}/{count}", **more), 3, own=own) for k in range(1, count + 1)]  # type: ignore[arg-type]


def test_a_fold_of_data_that_are_no_files_takes_the_place_of_the_test_split() -> None:
    whole = make_dataset(64)
    pictures = whole.train.images.images_NCHW  # type: ignore[attr-defined]
    for one in of_configured(whole, 4):
        for part in (one.train, one.test):
            assert part.identities_N is not None
            assert torch.equal(whole.train.labels_N[part.identities_N], part.labels_N)
            (batch,) = part.images.batches([torch.arange(len(part.labels_N))])
            assert torch.equal(batch, pictures[part.identities_N])
        both = torch.cat([one.train.identities_N, one.test.identities_N])  # type: ignore[list-item]
        assert both.sort().values.tolist() == list(range(64))
    info = dataset_info(DataConfig(fold="1/4"), 3, whole)
    assert torch.equal(info.labels_N, of_configured(whole, 4)[0].train.labels_N)


def test_validation_that_the_data_bring_is_in_no_fold() -> None:
    whole = make_dataset(64)
    val_ids = torch.arange(50, 64)
    for one in of_configured(Dataset(**{**vars(whole), "val_ids": val_ids}), 4):
        assert one.val_ids is not None
        assert one.train.identities_N is not None
        assert one.train.identities_N[one.val_ids].tolist() == val_ids.tolist()


def test_some_rows_of_pictures_of_any_class() -> None:
    class Own:
        def __len__(self) -> int:
            return 3

        def to(self, device: torch.device) -> Own:
            return self

        def batches(self, ids: list[Tensor]) -> list[Tensor]:
            return [ids_B.view(-1, 1, 1, 1).to(torch.uint8) for ids_B in ids]

    chosen = some_pictures(Own(), torch.tensor([2, 0])).to(torch.device("cpu"))  # type: ignore[arg-type]
    assert len(chosen) == 2
    assert [batch.flatten().tolist() for batch in chosen.batches([torch.tensor([1, 0])])] == [[0, 2]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, the pictures of each in three groups, and a test split."""
    root = tmp_path_factory.mktemp("pictures")
    tiny.make_images(root)
    for name in ("a", "b"):
        for index, picture in enumerate(sorted((root / "train" / name).iterdir())):
            group = picture.parent / f"g{index % 6}"
            group.mkdir(exist_ok=True)
            shutil.move(picture, group / picture.name)
    return root


@pytest.mark.parametrize("brings_test", [True, False])
def test_folds_of_files_are_all_of_train(pictures: Path, brings_test: bool) -> None:
    root = pictures if brings_test else pictures / "train"
    names = []
    for one in of_configured(None, 3, name="image_folder", root=str(root), group="folder", image_size=8):
        listed = [file.name for file in one.listing.files]
        names.append(listed[len(one.train.labels_N) :])
        assert len(listed) == 60  # the data's own test split is in no fold
        assert len(one.test.labels_N) == len(names[-1])
    assert len({name for fold in names for name in fold}) == sum(map(len, names)) == 60
    groups = [{name.split("/")[-2] for name in fold} for fold in names]
    assert sum(map(len, groups)) == 6


def test_too_many_folds() -> None:
    with pytest.raises(DataError, match=r"data\.fold: got 1/70, and 64 training samples are too few for 70 folds"):
        for _ in of_configured(make_dataset(64), 70):
            pass


@pytest.mark.parametrize("value", ["0/5", "6/5", "1/1", "1", 1, 0.2, "1/5 ", "a/b"])
def test_what_is_no_fold(value: object) -> None:
    with pytest.raises(ConfigError, match="must be a fold and the number of folds"):
        load_config(["quickstart", {"data": {"fold": value}}])


def evaluate(words: list[str]) -> int:
    """The program, as one of the ranks."""
    from trainlib.inference.evaluate import main

    return main(words)


@pytest.mark.slow
def test_a_run_of_a_fold_is_tested_on_it_on_any_number_of_ranks(tmp_path: Path) -> None:
    """Its predictions name the samples by their index in the whole training set."""
    tables = []
    for world_size in (1, 2):
        cwd = tmp_path / str(world_size)
        cwd.mkdir()
        words = ["quickstart", "name=run", "data.fold=2/40", "train.steps=2", "train.epochs=null", "data.limit=40"]
        assert set(ranks.train(words, world_size=world_size, cwd=cwd)) == {0}, ranks.console(cwd)
        assert ranks.run(evaluate, ["runs/run", "--predictions", "p.csv"], world_size=1, cwd=cwd) == [0]
        with (cwd / "p.csv").open(newline="") as file:
            tables.append([(row["index"], row["label"]) for row in csv.DictReader(file)])
    whole = load_data(DataConfig(name="synthetic"), 0)
    fold = split_fold(whole.train.labels_N, 1, 40, 0)
    assert [int(index) for index, _ in tables[0]] == fold.tolist()
    assert [label for _, label in tables[0]] == [whole.class_names[whole.train.labels_N[i]] for i in fold]
    assert tables[0] == tables[1]
