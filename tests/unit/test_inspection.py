"""What makes a training useless is noticed in the decoded data: refused where nothing can be learned, else told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainlib.config.schema.sections import DataConfig
from trainlib.data import Dataset, image_dataset, load_data
from trainlib.data.survey.inspection import inspect, text_order_notice
from trainlib.errors import DataError

LABELS = [0, 1] * 20
NONE_HELD_OUT = torch.empty(0, dtype=torch.int64)


def noise(count: int = 40, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(count).integers(low, high, (count, 8, 8, 3), dtype=np.uint8)


def given(pixels_NHWC: np.ndarray, labels: list[int] = LABELS) -> Dataset:
    return image_dataset((pixels_NHWC, labels), (noise(4), [0, 1, 0, 1]), classes=("cat", "dog"))


def look(dataset: Dataset) -> str:
    return "\n".join(inspect(dataset, torch.arange(len(dataset.train.labels_N)), NONE_HELD_OUT))


def test_pictures_as_they_should_be_need_no_word() -> None:
    assert look(given(noise())) == ""
    grey = noise()[..., :1].repeat(3, axis=3)
    assert look(given(grey)) == ""


@pytest.mark.parametrize("value", [0, 255, 7])
def test_pictures_of_one_colour_that_are_all_the_same_are_refused(value: int) -> None:
    with pytest.raises(DataError, match=rf"of the single colour \[{value}, {value}, {value}\].*nothing can be learned"):
        look(given(np.full((40, 8, 8, 3), value, np.uint8)))


def test_the_same_picture_everywhere_is_refused() -> None:
    with pytest.raises(DataError, match="all 40 training pictures that were looked at are the same: nothing can"):
        look(given(noise(1).repeat(40, axis=0)))


def test_pictures_of_two_colours_can_be_told_apart_and_are_told() -> None:
    pixels = np.zeros((40, 8, 8, 3), np.uint8)
    pixels[1::2] = 200
    assert "40 of 40 training pictures that were looked at are of a single colour" in look(given(pixels))


def test_some_blank_pictures_are_told_with_their_class() -> None:
    pixels = noise()
    pixels[5:10:2] = 0
    assert (
        "3 of 40 training pictures that were looked at are of a single colour, in the class(es) 'dog'; the first is "
        "number 5" in look(given(pixels))
    )


@pytest.mark.parametrize("channel", range(3))
def test_a_channel_that_is_the_same_everywhere_is_told(channel: int) -> None:
    pixels = noise()
    pixels[..., channel] = 9
    assert f"{('red', 'green', 'blue')[channel]} is 9 (of 255)" in look(given(pixels))


def test_dark_pictures_are_told() -> None:
    assert "lie between 0 and 15 of 255" in look(given(noise(low=0, high=16)))


def test_a_single_class_is_refused_also_where_the_limit_leaves_one() -> None:
    dataset = given(noise())
    with pytest.raises(DataError, match=r"all 20 training samples are of one class, 'dog'.*data.limit"):
        inspect(dataset, torch.arange(1, 40, 2), NONE_HELD_OUT)


def test_classes_that_a_split_lacks_are_told() -> None:
    dataset = image_dataset((noise(), LABELS), (noise(2), [1, 1]), classes=("cat", "dog", "emu"))
    train, val, few, test = inspect(dataset, torch.arange(40), torch.tensor([0, 2]))
    assert train == "no training sample is of the class(es) 'emu': they cannot be learned"
    assert "the validation split has no sample of 2 of the 3 classes ('dog', 'emu')" in val
    assert "the validation split has fewer than 10 images of 1 of the 3 classes ('cat')" in few
    assert "the test split has no sample of 2 of the 3 classes ('cat', 'emu')" in test


def save_16_bits(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels[..., 0].astype(np.uint16)).save(path)


def save_32_bits(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels[..., 0].astype(np.int32)).save(path.with_suffix(".tif"))


def save_in_alpha(path: Path, pixels: np.ndarray) -> None:
    black = np.zeros_like(pixels)
    Image.fromarray(np.concatenate([black, pixels[..., :1]], axis=2), "RGBA").save(path)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("save", [save_16_bits, save_32_bits, save_in_alpha], ids=["16 bits", "32 bits", "alpha"])
def test_files_that_are_decoded_to_black_are_refused(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture in the alpha channel alone and, as older runs decode them, 8 bits in a file of 16 or 32 bits."""
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for index, pixels in enumerate(noise(3)):
                save(tmp_path / split / name / f"{index}.png", pixels)
    with pytest.raises(DataError, match=r"single colour \[0, 0, 0\].*Transparency is dropped.*upper 8 of 16 bits"):
        look(load_data(DataConfig(name="image_folder", root=str(tmp_path), image_size=8, decode="pillow")))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["0", "1", "10", "11", "2"], "'0', '1', '10', '11', '2'. .*'00', '01', '02', ..."),
        (["class1", "class10", "class2"], "'class01', 'class02', 'class10'"),
        (["0", "1", "2"], None),
        (["00", "01", "10"], None),
        (["cat", "dog"], None),
        (["2", "10", "1"], None),  # somebody's own order
    ],
)
def test_numbers_sorted_as_text_are_told(names: list[str], words: str | None) -> None:
    notice = text_order_notice(names)
    assert (notice is None) == (words is None)
    if words is not None and notice is not None:
        assert re.search(words, notice), notice


@pytest.mark.parametrize("other", ["Cat", "cat ", "CAT", "c\uff41t"])
def test_classes_that_are_written_alike_are_told(other: str) -> None:
    dataset = image_dataset((noise(), LABELS), (noise(4), [0, 1, 0, 1]), classes=("cat", other))
    assert f"classes that may be one, as they are written alike: 'cat' and {other!r}. Join them" in look(dataset)
    unlike = image_dataset((noise(), LABELS), (noise(4), [0, 1, 0, 1]), classes=("cat 1", "cat 2"))
    assert look(unlike) == ""


class Own:
    """A data set of torch's form that names its classes."""

    def __init__(self, *classes: str):
        self.classes = list(classes)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return noise(1)[0], index % 2


@pytest.mark.parametrize("other", [("dog", "cat"), ("ant", "cat", "dog"), ("cat",)])
def test_splits_whose_own_classes_differ_are_refused(other: tuple[str, ...]) -> None:
    message = r"train has cat, dog and test has .*, must be the same in the same order"
    with pytest.raises(DataError, match=message):
        image_dataset(Own("cat", "dog"), Own(*other))
    with pytest.raises(DataError, match=message):
        image_dataset(Own("cat", "dog"), Own(*other), classes=("a", "b"))
    assert image_dataset(Own("cat", "dog"), Own("cat", "dog"), classes=("a", "b")).class_names == ("a", "b")
