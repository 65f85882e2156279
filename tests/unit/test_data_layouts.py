"""Layouts of class folders: which splits a root brings, which are drawn, and what is told of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from class_folders import save_classes, save_picture
from torchvision.datasets import ImageFolder

from trainlib.config.schema.sections import Config, DataConfig
from trainlib.data import Dataset, dataset_info, load_data
from trainlib.data.survey.inspection import summary
from trainlib.errors import DataError
from trainlib.training.build.data import plan_of

SIZE = 12


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))


def config(root: Path, **data: Any) -> Config:
    values = {"name": "image_folder", "root": str(root), "image_size": SIZE, **data}
    return Config(name="run", data=DataConfig.model_validate(values))


def load(root: Path, seed: int = 0, **data: Any) -> Dataset:
    return load_data(config(root, **data).data, seed)


def names(dataset: Dataset, split: str) -> set[str]:
    """Names of the samples of train or of test, as the listing has them."""
    files = dataset.listing.files
    num_train = len(dataset.train.labels_N)
    return {file.name for file in (files[:num_train] if split == "train" else files[num_train:])}


@pytest.mark.parametrize("folder", ["val", "valid", "validation"])
@pytest.mark.parametrize("has_test", [True, False])
def test_a_validation_folder_is_used(tmp_path: Path, folder: str, has_test: bool) -> None:
    save_classes(tmp_path / "r/train", {"cat": 10, "dog": 12})
    save_classes(tmp_path / f"r/{folder}", {"cat": 3, "dog": 4}, start=100)
    if has_test:
        save_classes(tmp_path / "r/test", {"cat": 2, "dog": 1}, start=200)
    dataset = load(tmp_path / "r")
    plan, val_ids = plan_of(config(tmp_path / "r"), dataset)
    expected = ImageFolder(tmp_path / "r" / folder)
    assert dataset.train.labels_N[val_ids].tolist() == expected.targets
    pixels = next(dataset.train.images.batches([val_ids]))
    for image, (picture, _) in zip(pixels, expected, strict=True):
        assert image.permute(1, 2, 0).flatten().tolist() == [v for p in picture.getdata() for v in p]
    assert not set(plan.ids_N.tolist()) & set(val_ids.tolist())
    assert len(plan.ids_N) == (22 if has_test else 18)  # else a fifth of each class is held out for the test
    assert len(dataset.test.labels_N) == (3 if has_test else 4)


def test_a_run_that_began_before_validation_folders_goes_on_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor do folders that a new run refuses end it."""
    for number, folder in enumerate(("train", "test", "val", "valid", "Val")):
        save_classes(tmp_path / "r" / folder, {"cat": 10, "dog": 12}, start=100 * number)
    with pytest.raises(DataError):
        load(tmp_path / "r")
    with caplog.at_level("INFO"):
        older = load(tmp_path / "r", decode="pillow", split="index")
    assert "not used, as this run began before they were: Val, val, valid" in caplog.text
    assert older.val_ids is None
    assert {name.partition("/")[0] for split in ("train", "test") for name in names(older, split)} == {"train", "test"}


def test_class_folders_in_the_root_are_divided_by_names(tmp_path: Path) -> None:
    save_classes(tmp_path / "r", {"cat": 20, "dog": 30})
    first = load(tmp_path / "r")
    assert first.class_names == ("cat", "dog")
    assert torch.bincount(first.test.labels_N).tolist() == [4, 6]
    assert names(first, "train") | names(first, "test") == {
        f"{name}/{i:03}.png" for name, count in (("cat", 20), ("dog", 30)) for i in range(count)
    }
    assert names(load(tmp_path / "r", seed=1), "test") != names(first, "test")
    assert torch.bincount(load(tmp_path / "r", test_fraction=0.5).test.labels_N).tolist() == [10, 15]
    save_picture(tmp_path / "r/cat/new.png")
    moved = names(first, "test") ^ names(load(tmp_path / "r"), "test")
    assert len(moved - {"cat/new.png"}) <= 1
    assert all(name.startswith("cat/") for name in moved)


def test_train_may_be_the_name_of_a_class(tmp_path: Path) -> None:
    save_classes(tmp_path / "r", {"bus": 5, "train": 5})
    assert load(tmp_path / "r").class_names == ("bus", "train")


def test_check_sees_the_same_samples_as_training(tmp_path: Path) -> None:
    save_classes(tmp_path / "r/train", {"cat": 10, "dog": 12})
    save_classes(tmp_path / "r/val", {"cat": 3, "dog": 4})
    info, dataset = dataset_info(config(tmp_path / "r").data, 0), load(tmp_path / "r")
    assert torch.equal(info.labels_N, dataset.train.labels_N)
    assert info.val_ids is not None
    assert dataset.val_ids is not None
    assert torch.equal(info.val_ids, dataset.val_ids)


@pytest.mark.parametrize(
    ("folders", "data", "message"),
    [
        (["train", "val", "valid"], {}, "has the folders val and valid, of which one can be the validation split"),
        (["train", "Val"], {}, "has the folders Val beside train: write the names in lower case"),
        (["train", "test"], {"test_fraction": 0.1}, "data.test_fraction: got 0.1, but the data bring 4 test samples"),
        (["val", "test"], {}, r"has no folder 'train' \(its folders: test, val\).* Is test a split\?"),
        (["train"], {"group": "folder"}, "no picture is in a folder below its class"),
        (["train"], {"group": "patient"}, "got patient, must be folder or null"),
    ],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, folders: list[str], data: dict[str, Any], message: str) -> None:
    for folder in folders:
        save_classes(tmp_path / "r" / folder, {"cat": 2, "dog": 2})
    with pytest.raises(DataError, match=message):
        load(tmp_path / "r", **data)


def test_a_class_of_val_that_is_not_trained_is_refused(tmp_path: Path) -> None:
    save_classes(tmp_path / "r/train", {"cat": 2, "dog": 2})
    save_classes(tmp_path / "r/val", {"cat": 2, "dgo": 2})
    with pytest.raises(DataError, match=r"Classes of val that are missing from train \(1\): dgo \(the same as 'dog'"):
        load(tmp_path / "r")


def test_folders_beside_the_splits_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder in ("train", "extra"):
        save_classes(tmp_path / "r" / folder, {"cat": 3, "dog": 3})
    load(tmp_path / "r")
    assert "that are no split are not used: extra." in caplog.text


def test_groups_are_never_cut(tmp_path: Path) -> None:
    for patient in range(12):
        for name in ("cat", "dog") if patient % 3 else ("cat",):
            save_classes(tmp_path / "r" / name, {f"p{patient}": 1 + patient % 4})
    dataset = load(tmp_path / "r", group="folder", val_fraction=0.25)
    plan, val_ids = plan_of(config(tmp_path / "r", group="folder", val_fraction=0.25), dataset)
    files = dataset.listing.files
    sides = [
        {files[i].name.split("/")[1] for i in ids.tolist()}
        for ids in (plan.ids_N, val_ids, torch.arange(len(dataset.train.labels_N), len(files)))
    ]
    assert all(sides)
    assert sum(map(len, sides)) == 12


def test_a_group_that_the_data_cut_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            save_classes(tmp_path / "r" / split / name, {"p1": 2})
    with pytest.raises(DataError, match=r"1 group\(s\) are on two sides .*: p1 \(in test and train\)"):
        load(tmp_path / "r", group="folder")


def test_what_was_found_is_told(tmp_path: Path) -> None:
    save_classes(tmp_path / "r/train", {"cat": 20, "dog": 30})
    save_classes(tmp_path / "r/test", {"cat": 2, "dog": 3})
    dataset = load(tmp_path / "r")
    plan, val_ids = plan_of(config(tmp_path / "r"), dataset)
    assert summary(dataset, plan.ids_N, val_ids) == (
        "data: 45 images to train on, 5 for validation, 5 for the test; 2 classes, of 18 (cat) to 27 (dog) training "
        "images"
    )


def test_a_batch_is_at_most_all_samples(tmp_path: Path) -> None:
    save_classes(tmp_path / "r", {"cat": 5, "dog": 5})
    plan, _ = plan_of(config(tmp_path / "r"), load(tmp_path / "r"))
    assert plan.global_batch_size == len(plan.ids_N) < 64
    assert plan.steps_per_epoch == 1


def test_an_edited_file_a_renamed_class_and_another_root(tmp_path: Path) -> None:
    root = save_classes(tmp_path / "r", {"cat": 4, "dog": 4})
    before = load(root).listing
    moved = Path(shutil.copytree(root, tmp_path / "elsewhere"))
    assert load(moved).listing.digest == before.digest
    assert load(moved).listing.content == before.content
    shutil.copy(moved / "cat/000.png", moved / "dog/001.png")
    assert load(moved).listing.content != before.content
    (root / "cat").rename(root / "kitten")
    assert load(root).listing.digest != before.digest
