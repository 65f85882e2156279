"""Tables of pictures: pandas and pyarrow write what is read here, and every mistake names its row."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from class_folders import save_picture

from trainlib.config.schema.sections import DataConfig
from trainlib.data import Dataset, load_data
from trainlib.data.sources.table import list_table
from trainlib.errors import DataError

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """Thirty pictures of three classes, some in every split, none in class folders."""
    found = []
    for i in range(30):
        save_picture(tmp_path / f"photos/{i % 4}/{i:02}.png")
        split = ("train", "train", "train", "valid", "test")[i // 3 % 5]
        found.append({"path": f"{i % 4}/{i:02}.png", "label": ("ox", "bee, wild", "äpfel")[i % 3], "split": split})
    return found


def write(path: Path, rows: Rows, **options: Any) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
        writer = csv.DictWriter(file, columns, **options)
        writer.writeheader()
        writer.writerows(rows)
    return path


def load(folder: Path, table: Path, **data: Any) -> Dataset:
    values = {"name": "table", "root": str(folder / "photos"), "table": str(table), "image_size": 12, **data}
    return load_data(DataConfig.model_validate(values))


def refused(folder: Path, table: Path, group: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        list_table(folder / "photos", str(table), group=group)
    return str(caught.value)


@pytest.mark.parametrize("options", [{}, {"encoding": "utf-8-sig"}, {"delimiter": ";"}, {"delimiter": "\t"}])
def test_rows_become_samples_in_their_order(tmp_path: Path, rows: Rows, options: dict[str, Any]) -> None:
    dataset = load(tmp_path, write(tmp_path / "t.csv", rows, **options))
    assert dataset.class_names == ("bee, wild", "ox", "äpfel")
    order = [row for split in ("train", "valid", "test") for row in rows if row["split"] == split]
    labels = torch.cat([dataset.train.labels_N, dataset.test.labels_N]).tolist()
    assert [dataset.class_names[label] for label in labels] == [row["label"] for row in order]
    assert [file.name for file in dataset.listing.files] == [row["path"] for row in order]
    assert dataset.val_ids is not None
    assert len(dataset.val_ids) == sum(row["split"] == "valid" for row in rows)


def test_a_table_without_splits_is_divided(tmp_path: Path, rows: Rows) -> None:
    table = write(tmp_path / "t.csv", [{"path": row["path"], "label": row["label"]} for row in rows])
    dataset = load(tmp_path, table)
    assert torch.bincount(dataset.test.labels_N).tolist() == [2, 2, 2]
    assert dataset.val_ids is None


@pytest.mark.parametrize("group", [None, "patient", "folder"])
def test_groups_of_a_column_or_of_folders(tmp_path: Path, rows: Rows, group: str | None) -> None:
    column = group or "group"
    for i, row in enumerate(rows):
        del row["split"]
        if group != "folder":
            row[column] = f"g{i % 4}"
    samples = list_table(tmp_path / "photos", str(write(tmp_path / "t.csv", rows)), group=group)
    assert samples.groups == [f"{'' if group == 'folder' else 'g'}{i % 4}" for i in range(30)]
    test = load(tmp_path, tmp_path / "t.csv", group=group).listing.files[-8:]
    assert len({file.name[0] for file in test}) == 1


def test_every_mistake_names_its_row(tmp_path: Path, rows: Rows) -> None:
    rows[0]["path"] = "0/none.png"
    rows[2]["label"] = " "
    rows[4]["split"] = "dev"
    rows[6]["path"] = "../6.png"
    rows[8]["label"] = "ox;äpfel"
    rows[10]["path"] = "0"
    rows.append(dict(rows[20]))
    text = refused(tmp_path, write(tmp_path / "t.csv", rows))
    for part in (
        "row 2: 0/none.png: No such file",
        "row 4: label is empty",
        "row 6: split is 'dev', must be train, val or test",
        f"row 8: path '../6.png' leads out of data.root, {tmp_path / 'photos'}",
        "row 10: label is 'ox;äpfel': for several labels set data.labels=several and loss.name=BCEWithLogitsLoss",
        "row 12: 0 is no file",
        "row 32: 0/20.png is in row 22 already",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column 'path' and no column 'label'"),
        (b"file,label\na,b\n", "has no column 'path'; its columns are file, label"),
        (b"path,label,weight\na,b,2\n", "weights of single samples are not trained with"),
        (b"path,label\na,b,c\n", "row 2: it has 3 cells, and there are 2 columns"),
        (b'path,label\na,"b\n', "row 2: unexpected end of data"),
        (b"path,label,path\na,b,c\n", "has two columns path"),
        (b"path,label\n\xff,b\n", "is no text in UTF-8"),
    ],
)
def test_a_table_of_another_form(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "t.csv").write_bytes(content)
    assert message in refused(tmp_path, tmp_path / "t.csv")


def test_a_group_column_that_is_not_there(tmp_path: Path, rows: Rows) -> None:
    text = refused(tmp_path, write(tmp_path / "t.csv", rows), group="patient")
    assert "has no column 'patient' (data.group names it); its columns are path, label, split" in text


def test_cells_of_parquet_become_text(tmp_path: Path, rows: Rows) -> None:
    """Bytes are text; what is not a number is no name."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    paths, labels = [row["path"] for row in rows], [row["label"] for row in rows]
    parquet.write_table(pyarrow.table({"path": paths, "label": map(str.encode, labels)}), tmp_path / "t.parquet")
    assert set(load(tmp_path, tmp_path / "t.parquet").class_names) == set(labels)
    numbers = [float("nan"), *map(float, range(1, len(paths)))]
    parquet.write_table(pyarrow.table({"path": paths, "label": numbers}), tmp_path / "t.parquet")
    assert "row 2: label is empty" in refused(tmp_path, tmp_path / "t.parquet")


def test_parquet_and_csv_of_pandas_are_one_data_set(tmp_path: Path, rows: Rows) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(rows)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    first, second = (load(tmp_path, tmp_path / name).listing for name in ("t.csv", "t.parquet"))
    assert first.digest == second.digest
