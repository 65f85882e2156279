"""The data set `hf`: pictures and labels of a Hugging Face data set that `datasets.save_to_disk` wrote."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainlib.data.identity.stamp import Stamp, Stamps
from trainlib.data.pictures.files import MAX_BYTES, read_picture
from trainlib.data.sources.folders.layout import absolute, name_some
from trainlib.data.sources.samples import SPLITS, Samples
from trainlib.errors import DataError

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


class EncodedColumns:
    """The encoded pictures in columns of Hugging Face data sets, one after the other.

    columns   of each split, as `datasets` has them: each item is {"bytes": ..., "path": ...}
    """

    def __init__(self, columns: Sequence[tuple[str, Any]]):
        self._columns = columns
        self._length = sum(len(column) for _, column in columns)

    def __len__(self) -> int:
        return self._length

    def _find(self, index: int) -> tuple[str, Any, int]:
        for split, column in self._columns:
            if index < len(column):
                return split, column, index
            index -= len(column)
        raise IndexError(index)

    def read(self, index: int) -> bytes:
        """Return a picture's bytes, which are in the data set or in a file of their own."""
        _, column, row = self._find(index)
        [(name, cell)] = column[row].items()
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise ValueError(f"there is no picture in the column {name}")
        data: bytes = cell["bytes"] if cell["bytes"] is not None else read_picture(cell["path"])
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
        return data

    def describe(self, index: int) -> str:
        """Return the split and the row."""
        split, _, row = self._find(index)
        return f"{split}[{row}]"


def list_hugging_face(root: Path) -> Samples:
    """List the pictures of a data set on disk, in its order within each split; none is decoded.

    Raises DataError where `datasets` is missing, for what is no such data set, and for one without pictures and labels.
    """
    root = absolute(root)
    splits = _load(root)
    import datasets

    features = splits["train"].features
    image, label = _image_column(features), _label_column(features)
    still_encoded = datasets.Image(decode=False)
    classes = tuple(features[label].names)
    names, labels, stamps, columns = [], [], [], []
    for split, rows in splits.items():
        if rows.features[image] != features[image] or getattr(rows.features[label], "names", None) != list(classes):
            raise DataError(f"data.root: in {root} the splits train and {split} have other columns or classes")
        column = rows.select_columns([image]).cast_column(image, still_encoded)
        columns.append((f"{root}/{split}", column))
        names += [str(row) for row in range(len(rows))]
        labels += _labels(root, split, rows[label], len(classes))
        stamps += _stamps(column, image)
    return Samples(
        source="hf",
        classes=classes,
        counts={split: len(splits.get(split, ())) for split in SPLITS},
        names=names,
        labels_N=torch.tensor(labels, dtype=torch.int64),
        stamps=Stamps.of(stamps),
        files=EncodedColumns(columns),
        folders={split: f"{split}/" for split in splits},
    )


def _load(root: Path) -> dict[str, Any]:
    """Return the splits by our names for them, train first."""
    if not root.is_dir():
        raise DataError(f"data.root: {root} {'is not a folder' if root.exists() else 'does not exist'}")
    try:
        import datasets
    except ImportError as error:
        raise DataError("data.name=hf needs the package datasets: pip install 'trainlaunch[hf]'") from error
    try:
        loaded = datasets.load_from_disk(str(root))
    except Exception as error:  # the package raises almost anything on a folder of another form
        raise DataError(
            f"data.root: {root} is no data set that save_to_disk wrote: {str(error).rstrip('.')}. In Python, "
            f"dataset.save_to_disk({str(root)!r}) writes one"
        ) from error
    given = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    unknown = [name for name in given if name not in SPLIT_NAMES]
    found = {ours: [name for name in given if SPLIT_NAMES.get(name) == ours] for ours in SPLITS}
    if unknown or not found["train"] or any(len(same) > 1 for same in found.values()):
        raise DataError(
            f"data.root: {root} has the splits {name_some(list(given))}, must be train and, where there are such, one "
            "of val, valid and validation, and test: save the data set with these names"
        )
    return {ours: given[same[0]].with_format(None) for ours, same in found.items() if same}


def _image_column(features: Any) -> str:
    import datasets

    found = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if len(found) != 1:
        raise DataError(
            f"data.root: the data set has {len(found)} columns of the type Image, must be 1; its columns are "
            f"{name_some(list(features))}"
        )
    return str(found[0])


def _label_column(features: Any) -> str:
    import datasets

    found = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    chosen = found if len(found) == 1 else [name for name in found if name == "label"]
    if not chosen:
        raise DataError(
            f"data.root: the data set has {len(found)} columns of the type ClassLabel ({name_some(found)}), must be 1, "
            f"or one of the name label; its columns are {name_some(list(features))}. class_encode_column makes one"
        )
    return str(chosen[0])


def _labels(root: Path, split: str, values: Sequence[Any], num_classes: int) -> list[int]:
    labels = list(values)
    wrong = [row for row, label in enumerate(labels) if label is None or not 0 <= label < num_classes]
    if wrong:
        rows = name_some([str(row) for row in wrong])
        raise DataError(f"data.root: in {root} rows of {split} have no label of the {num_classes} classes: {rows}")
    return labels


def _stamps(column: Any, image: str) -> list[Stamp]:
    """Return the stamp of each row: its own number of bytes, and what the file system says of the newest file."""
    statuses = [os.stat(file["filename"]) for file in column.cache_files]
    newest = max(statuses, key=lambda status: status.st_ctime_ns, default=None)
    of_file = Stamp(0, 0, 0, 0) if newest is None else Stamp.of(newest)
    return [of_file._replace(size=size) for size in sizes_of(column, image)]


def sizes_of(column: Any, image: str) -> list[int]:
    """Return the number of bytes of each row's picture, without reading any that is in the data set itself."""
    import pyarrow.compute

    sizes: list[int] = []
    for cells in column.with_format("arrow")[:][image].chunks:  # put together, they would take as much memory again
        found = pyarrow.compute.binary_length(cells.field("bytes")).to_pylist()
        if None in found:
            paths = cells.field("path").to_pylist()
            found = [_file_size(path) if size is None else size for size, path in zip(found, paths, strict=True)]
        sizes += found
    return sizes


def _file_size(path: str | None) -> int:
    return os.path.getsize(path) if path and os.path.exists(path) else 0
