"""Hugging Face data sets on disk, as `datasets` itself writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from class_folders import save_picture
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from trainlib.config.schema.sections import DataConfig
from trainlib.data import Dataset, load_data
from trainlib.data.sources.hugging_face import sizes_of
from trainlib.errors import DataError


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))


def hf() -> Any:
    """The package, imported by the first test that needs it: it takes long."""
    return pytest.importorskip("datasets")


def made(tmp_path: Path, count: int, **columns: Any) -> Any:
    paths = [str(save_picture(tmp_path / f"{count}-{i}.png")) for i in range(count)]
    features = {"image": hf().Image(), "label": hf().ClassLabel(names=["ox", "ant"])}
    values = {"image": paths, "label": [i % 2 for i in range(count)], **columns}
    return hf().Dataset.from_dict(values, features=hf().Features(features))


def load(root: Path) -> Dataset:
    return load_data(DataConfig.model_validate({"name": "hf", "root": str(root), "image_size": 12}))


def pixels(rows: Any) -> torch.Tensor:
    return torch.stack([pil_to_tensor(row["image"].convert("RGB")) for row in rows])


def test_splits_labels_and_pixels_are_those_of_datasets(tmp_path: Path) -> None:
    saved = hf().DatasetDict({"train": made(tmp_path, 12), "validation": made(tmp_path, 6), "test": made(tmp_path, 4)})
    saved.save_to_disk(str(tmp_path / "hf"))
    dataset, expected = load(tmp_path / "hf"), hf().load_from_disk(str(tmp_path / "hf"))
    assert dataset.class_names == ("ox", "ant")
    assert dataset.val_ids is not None
    assert dataset.val_ids.tolist() == list(range(12, 18))
    for images, rows in (
        (dataset.train, [*expected["train"], *expected["validation"]]),
        (dataset.test, expected["test"]),
    ):
        assert images.labels_N.tolist() == [row["label"] for row in rows]
        assert torch.equal(next(images.images.batches([torch.arange(len(rows))])), pixels(rows))


def test_more_than_two_gigabytes_are_listed() -> None:
    """No array of arrow's holds as much; one piece stands here for all of them, and takes its memory once."""
    pyarrow = pytest.importorskip("pyarrow")
    columns = [pyarrow.array([bytes(1 << 20), None]), pyarrow.array([None, __file__])]
    piece = pyarrow.StructArray.from_arrays(columns, ["bytes", "path"])
    table = hf().table.InMemoryTable(pyarrow.table({"image": pyarrow.chunked_array([piece] * 2100)}))
    rows = hf().Dataset(table, fingerprint="none")  # by itself it puts them together, in vain
    assert sizes_of(rows, "image") == [1 << 20, Path(__file__).stat().st_size] * 2100


def test_one_data_set_is_divided_and_its_order_is_kept(tmp_path: Path) -> None:
    made(tmp_path, 20).select(range(19, -1, -1)).save_to_disk(str(tmp_path / "hf"))
    dataset = load(tmp_path / "hf")
    assert torch.bincount(dataset.test.labels_N).tolist() == [2, 2]
    first = dataset.listing.files[0]
    expected = hf().load_from_disk(str(tmp_path / "hf"))[int(first.name.removeprefix("train/"))]
    assert torch.equal(next(dataset.train.images.batches([torch.tensor([0])])), pixels([expected]))


def test_what_is_no_such_data_set_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is no data set that save_to_disk wrote"):
        load(tmp_path / "empty")
    hf().DatasetDict({"train": made(tmp_path, 4), "dev": made(tmp_path, 2)}).save_to_disk(str(tmp_path / "dev"))
    with pytest.raises(DataError, match="has the splits train, dev, must be train and"):
        load(tmp_path / "dev")
    hf().Dataset.from_dict({"image": [1, 2], "label": [0, 1]}).save_to_disk(str(tmp_path / "numbers"))
    with pytest.raises(DataError, match="has 0 columns of the type Image"):
        load(tmp_path / "numbers")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'trainlaunch\[hf\]'"):
        load(tmp_path / "dev")


def test_a_row_without_a_label_or_a_picture(tmp_path: Path) -> None:
    made(tmp_path, 6, label=[0, 1, None, 1, 0, 1]).save_to_disk(str(tmp_path / "hf"))
    with pytest.raises(DataError, match="rows of train have no label of the 2 classes: 2"):
        load(tmp_path / "hf")
    picture = {"bytes": (tmp_path / "6-1.png").read_bytes(), "path": None}
    values = [picture, picture, None, *[picture] * 5]
    made(tmp_path, 8, image=values).save_to_disk(str(tmp_path / "gap"))
    with pytest.raises(DataError, match=r"\[2\]: there is no picture in the column image"):
        load(tmp_path / "gap")
    assert Image.open(tmp_path / "6-1.png").size == (12, 12)
