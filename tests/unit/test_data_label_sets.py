"""Tables whose cells list several labels: the sets that are read, the classes, their identity, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import label_sets
import pytest
import torch
from class_folders import save_picture

from trainlib.config import load_config
from trainlib.config.schema.sections import DataConfig
from trainlib.data import Dataset, image_dataset, load_data
from trainlib.data.batches.loader import MicroBatch
from trainlib.data.identity.listing import changes, dump_listing, parse_listing
from trainlib.data.sources.table import list_table
from trainlib.data.targets import Targets, class_names_of, set_of
from trainlib.errors import ConfigError, DataError, UserError
from trainlib.training.build.data import require_labels
from trainlib.training.programs.data.first_batch import label_lines
from trainlib.training.programs.data.survey_data import survey

CELLS = ["sun;sea", "", "sea", " sea ; sun;", "palm;;sun", "sun;sun"]
SETS = [["sea", "sun"], [], ["sea"], ["sea", "sun"], ["palm", "sun"], ["sun"]]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))


def write(folder: Path, cells: list[str], split: str = "") -> Path:
    for i in range(len(cells)):
        save_picture(folder / f"photos/{i}.png")
    lines = [f'{i}.png,"{cell}"{split and f",{split}"}' for i, cell in enumerate(cells)]
    table = folder / "t.csv"
    table.write_text("\n".join([f"path,label{split and ',split'}", *lines]))
    return table


def sets_of(folder: Path, table: Path, separator: str | None = ";") -> list[list[str]]:
    samples = list_table(folder / "photos", str(table), separator=separator)
    return class_names_of(samples.labels_N, samples.classes)


def test_a_cell_is_a_set_of_names(tmp_path: Path) -> None:
    """In any order, blanks around them and empty ones do not count, and neither does one that comes twice."""
    assert sets_of(tmp_path, write(tmp_path, CELLS)) == SETS


@pytest.mark.parametrize("separator", ["|", ",", " ", " and "])
def test_the_separator_is_any_text(tmp_path: Path, separator: str) -> None:
    cells = [separator.join(names) for names in SETS]
    assert sets_of(tmp_path, write(tmp_path, cells), separator) == SETS


@pytest.mark.parametrize("as_lists", [True, False])
def test_parquet_has_lists_or_texts(tmp_path: Path, as_lists: bool) -> None:
    import pyarrow
    import pyarrow.parquet

    write(tmp_path, CELLS)
    labels: list[Any] = [list(names) for names in SETS] if as_lists else [*CELLS]
    labels[1] = None
    table = pyarrow.table({"path": [f"{i}.png" for i in range(6)], "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert sets_of(tmp_path, tmp_path / "t.parquet") == SETS
    with pytest.raises(DataError, match=r"row 2: label is .*set data\.labels=several"):
        sets_of(tmp_path, tmp_path / "t.parquet", separator=None)
    table = pyarrow.table({"path": ["0.png", "1.png"], "label": [["sun;sea"], ["sun"]]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"row 2: label 'sun;sea' holds data\.label_separator"):
        sets_of(tmp_path, tmp_path / "t.parquet")


def load(folder: Path, **data: Any) -> Dataset:
    values = {"name": "table", "root": str(folder / "photos"), "table": str(folder / "photos.csv"), "image_size": 8}
    return load_data(DataConfig.model_validate({**values, "labels": "several", **data}))


def test_sets_are_part_of_the_datas_identity(tmp_path: Path) -> None:
    table = label_sets.write_table(tmp_path, 40)
    first = load(tmp_path).listing
    again = parse_listing(dump_listing(first))
    assert again is not None
    assert again.digest == first.digest
    assert again.files == first.files
    assert [file.label for file in again.files] == [file.label for file in first.files]
    rows = table.read_text().splitlines()
    rows[5] = "0004.png," if not rows[5].endswith(",") else "0004.png,disc"
    table.write_text("\n".join(rows))
    second = load(tmp_path).listing
    assert second.digest != first.digest
    assert changes(first, second) == ["1 file of another class: 0004.png"]


@pytest.mark.parametrize("cache", ["none", "pixels", "files"])
def test_every_storage_has_the_same_sets(tmp_path: Path, cache: str) -> None:
    label_sets.write_table(tmp_path, 40)
    dataset = load(tmp_path, cache=cache)
    assert dataset.class_names == tuple(label_sets.CLASSES)
    together = torch.cat([dataset.train.labels_N, dataset.test.labels_N])
    found = class_names_of(together, dataset.class_names)
    names = [int(Path(file.name).stem) for file in dataset.listing.files]
    assert found == [label_sets.draw(tmp_path / "again.png", number) for number in names]
    assert [] in found


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        ("labels: several, name: image_folder", "data.labels: got several, but data.name is image_folder"),
        (
            "name: table, table: t.csv, labels: one, label_separator: '|'",
            "data.label_separator: got '|', but data.labels is one",
        ),
        (
            "name: table, table: t.csv, labels: several, balance: 0.5",
            "data.balance: got 0.5, but data.labels is several",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(words: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(["quickstart", f"data={{{words}}}", "loss={name: BCEWithLogitsLoss}"])
    assert [str(found) for found in caught.value.mistakes if mistake in str(found)], str(caught.value)


@pytest.mark.parametrize(
    ("labels", "word", "key"),
    [
        ("several", "loss={name: CrossEntropyLoss}", "loss.name"),
        ("several", "loss={name: MSELoss}", "loss.name"),
        ("several", "checkpoint.best.metric=val/top5", "checkpoint.best.metric"),
        ("several", "train.early_stopping={metric: val/balanced_accuracy}", "train.early_stopping.metric"),
        ("several", "scheduler={name: ReduceLROnPlateau, metric: val/top5}", "scheduler.metric"),
        ("one", "checkpoint.best.metric=val/map", "checkpoint.best.metric"),
        ("one", "checkpoint.best.metric=val/micro_f1", "checkpoint.best.metric"),
        ("one", "train.early_stopping={metric: val/subset_accuracy}", "train.early_stopping.metric"),
    ],
)
def test_loss_and_metrics_fit_the_labels(labels: str, word: str, key: str) -> None:
    data = f"data={{name: table, table: t.csv, labels: {labels}}}"
    with pytest.raises(ConfigError) as caught:
        load_config(["quickstart", data, "loss={name: BCEWithLogitsLoss}", word])
    [mistake] = caught.value.mistakes
    assert mistake.key == key
    assert "val/map" in mistake.rule or "val/top5" in mistake.rule or "BCEWithLogitsLoss" in mistake.rule


def test_the_best_is_that_of_the_mean_average_precision() -> None:
    words = ["quickstart", "data={name: table, table: t.csv, labels: several}", "loss={name: BCEWithLogitsLoss}"]
    for more, metric in (("seed=0", "val/map"), ("checkpoint.best.metric=val/accuracy", "val/accuracy")):
        best = load_config([*words, more]).checkpoint.best
        assert best is not None
        assert (best.metric, best.mode) == (metric, "max")
    assert load_config([*words, "checkpoint.best=null"]).checkpoint.best is None


def test_sets_given_in_python(tmp_path: Path) -> None:
    images, labels = torch.zeros(6, 8, 8, dtype=torch.uint8), torch.rand(6, 3) < 0.5
    dataset = image_dataset((images, labels), (images, labels))
    assert dataset.class_names == ("0", "1", "2")
    assert torch.equal(dataset.train.labels_N, labels)
    with pytest.raises(DataError, match="must have 2 columns, one a class"):
        image_dataset((images, labels), (images, labels), classes=["a", "b"])
    with pytest.raises(UserError, match=r"data\.labels: got one, and the labels of train and test are torch\.bool"):
        require_labels(load_config(["quickstart"]), dataset)


def test_launch_data_counts_each_class_of_a_set(tmp_path: Path) -> None:
    label_sets.write_table(tmp_path, 60)
    facts = survey(load_config(label_sets.words(tmp_path)), pictures=True)
    sets = [label_sets.draw(tmp_path / "again.png", number) for number in range(60)]
    for row in facts["classes"]:
        assert row["train"] + row["val"] + row["test"] == sum(row["name"] in names for names in sets)
        assert all(row["name"] in example["class"].split(", ") for example in row["examples"])


def test_the_first_batch_names_all_labels() -> None:
    labels_N = set_of([[0, 2], []], 3)
    micro_batch = MicroBatch(torch.arange(2), torch.empty(2), Targets(labels_N, labels_N), 0)
    assert label_lines(micro_batch, ["ant", "bee", "cat"]) == [["ant, cat"], ["none"]]
