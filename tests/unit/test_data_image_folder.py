"""Class folders: their order, what is left out, and everything that can be wrong with them."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from trainlib.config.schema.sections import DataConfig
from trainlib.data import load_data
from trainlib.data.sources.folders.image_folder import list_image_folder
from trainlib.errors import DataError


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))


def save_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *str(path.name).encode()]).integers(0, 256, (12, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, three training images and one test image each."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(3):
            save_image(tmp_path / "images" / "train" / name / f"{i}.png", label)
        save_image(tmp_path / "images" / "test" / name / "9.png", label)
    return tmp_path / "images"


def message(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        list_image_folder(root)
    return str(caught.value)


def test_images_labels_and_order_are_those_of_torchvision(root: Path) -> None:
    save_image(root / "train" / "a-b" / "x.png")  # sorts before a/ as a whole path, but not as a class
    save_image(root / "train" / "a" / "x.png", 5)
    save_image(root / "train" / "a" / "X.PNG", 6)
    for name in ("a", "a-b"):
        save_image(root / "test" / name / "1.png")
    dataset = load_data(DataConfig(name="image_folder", root=str(root), image_size=12))
    assert dataset.class_names == ("a", "a-b", "cat", "dog")
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        expected = ImageFolder(root / split)
        assert images.labels_N.tolist() == expected.targets
        assert images.labels_N.dtype == torch.int64
        batch = next(images.images.batches([torch.arange(len(expected))]))
        for image, (expected_image, _) in zip(batch, expected, strict=True):
            np.testing.assert_array_equal(image.numpy(), np.asarray(expected_image).transpose(2, 0, 1))


def test_nested_folders_and_links_are_walked_but_not_in_circles(root: Path, tmp_path: Path) -> None:
    save_image(root / "train" / "cat" / "indoors" / "deep" / "4.png")
    save_image(tmp_path / "elsewhere" / "5.png")
    (root / "train" / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "train" / "cat" / "6.png").symlink_to(tmp_path / "elsewhere" / "5.png")
    circles = {"back": root / "train" / "cat", "up": root / "train", "out": tmp_path}
    for name, target in circles.items():
        (root / "train" / "cat" / "indoors" / name).symlink_to(target)
    samples = list_image_folder(root)
    names = [name for name in samples.full_names() if name.startswith("train/cat/")]
    expected = ["0.png", "1.png", "2.png", "6.png", "indoors/deep/4.png", "linked/5.png"]
    assert names == [f"train/cat/{name}" for name in expected]
    assert all(f"{root}/train/cat/indoors/{name}" in str(samples.notices) for name in circles)


def test_the_folder_above_one_of_its_classes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `launch init ..` sees it from within a class folder, which is no folder above the pictures."""
    monkeypatch.chdir(root / "train" / "cat")
    assert list(list_image_folder(Path("../..")).full_names()) == list(list_image_folder(root).full_names())


def test_files_that_are_no_images_are_left_out_with_one_notice(root: Path) -> None:
    left_out = ["train/readme.md", "train/cat/notes.txt", "test/dog/phone.raw", "test/loose.png"]
    for name in [*left_out, "train/cat/Thumbs.db", "train/.DS_Store", "train/dog/desktop.ini", "train/.git/x.png"]:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    samples = list_image_folder(root)
    assert samples.labels_N.tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    assert samples.classes == ("cat", "dog")
    [(_, notice), (_, junk)] = samples.notices
    assert f"(1): {root}/train/.git." in junk
    assert "(4)" in notice
    assert all(str(root / name) in notice for name in left_out)


def test_the_notices_are_told_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "train/readme.md").touch()
    config = DataConfig(name="image_folder", root=str(root), image_size=12)
    load_data(config, is_main=False)
    assert not caplog.records
    load_data(config)
    [record] = caplog.records
    assert (record.name, record.levelno) == ("trainlib.data", logging.WARNING)


def test_a_missing_root_is_named_with_the_layout(tmp_path: Path) -> None:
    assert message(tmp_path / "nowhere") == (
        f"data.root: {tmp_path / 'nowhere'} does not exist. "
        "The layout is data.root/train/<class>/<image> and, where there are such splits, data.root/val/<class>/<image> "
        "and data.root/test/<class>/<image>; or data.root/<class>/<image>, and data.test_fraction is held out for the "
        "test."
    )
    (tmp_path / "file").touch()
    assert "is not a folder" in message(tmp_path / "file")


def test_no_class_folders(tmp_path: Path) -> None:
    save_image(tmp_path / "train" / "1.png")
    (tmp_path / "test").mkdir()
    text = message(tmp_path)
    assert "has no class folders" in text
    assert "1.png" in text


def test_everything_that_is_wrong_with_the_classes_is_told_at_once(root: Path) -> None:
    (root / "test" / "cat").rename(root / "test" / "Cat")
    (root / "train" / "horse").mkdir()
    (root / "train" / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    for i in range(12):
        save_image(root / "train" / f"plane-{i:02}" / "1.png")
    save_image(root / "test" / "unheard" / "1.png")
    text = message(root)
    assert f"Links that lead to no file (1): {root / 'train' / 'dog' / 'gone.png'}." in text
    assert "Class folders without an image (1): train/horse." in text
    assert "missing from test (14): cat (the same as 'Cat' there?), horse, plane-00, " in text
    assert "plane-07 and 4 more. " in text
    assert "plane-08" not in text
    assert "missing from train (2): Cat (the same as 'cat' there?), unheard. " in text


def test_an_empty_class_of_the_test_split_is_a_mistake(root: Path) -> None:
    (root / "test" / "dog" / "9.png").unlink()
    assert "Class folders without an image (1): test/dog." in message(root)


def nest(root: Path, folder: str) -> None:
    """Move all class folders into one more folder."""
    for split in ("train", "test"):
        (root / split).rename(root / "moved")
        (root / split).mkdir()
        (root / "moved").rename(root / split / folder)


def test_a_single_class_is_a_mistake_and_the_folders_in_it_are_named(root: Path) -> None:
    nest(root, "pictures")
    text = message(root)
    assert f"{root / 'train'} has one class folder only, 'pictures', and needs two or more" in text
    assert "It holds the folders cat, dog. If these are the classes, there is one level of folders too many" in text


def test_a_root_one_level_too_high_is_told(root: Path) -> None:
    assert message(root.parent).endswith(f"{root} has them: set data.root to it.")


@pytest.mark.parametrize("junk", ["__MACOSX", "@eaDir", "#recycle", ".ipynb_checkpoints", "System Volume Information"])
def test_what_archives_and_drives_leave_behind_is_no_class_and_no_image(root: Path, junk: str) -> None:
    before = list_image_folder(root)
    assert before.notices == ()
    folders = ("", "train", "test", "train/cat")
    for folder in folders:
        save_image(root / folder / junk / "thumbnail.png")
    after = list_image_folder(root)
    assert (list(after.full_names()), after.stamps) == (list(before.full_names()), before.stamps)
    [(level, sentence)] = after.notices
    assert level == logging.INFO
    assert sentence.startswith("Left out, hidden or made by file managers, archives or drives (4): ")
    assert all(str(root / folder / junk) in sentence for folder in folders)


def test_the_same_folders_in_every_class_are_told(root: Path) -> None:
    for site in ("north", "south"):
        for name in ("cat", "dog"):
            for split in ("train", "test"):
                save_image(root / "sites" / split / site / name / "1.png")
    [(_, notice)] = list_image_folder(root / "sites").notices
    assert "(north, south) holds the same folders, cat, dog" in notice
    assert "the same folders" not in str(list_image_folder(root).notices)


def test_one_rank_lists_for_all_of_its_machine(root: Path, tmp_path: Path) -> None:
    config = DataConfig(name="image_folder", root=str(root), image_size=12)
    first = load_data(config, start_folder=tmp_path)
    (root / "train/cat/0.png").rename(root / "train/cat/7.png")  # nobody looks again in this start
    second = load_data(config, start_folder=tmp_path, is_main=False)
    assert second.listing == first.listing
    assert torch.equal(second.train.labels_N, first.train.labels_N)
    others = DataConfig(name="image_folder", root=str(root), image_size=12, test_fraction=0.5)
    with pytest.raises(DataError, match="leave the key out"):
        load_data(others, start_folder=tmp_path)
