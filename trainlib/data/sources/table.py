"""The data set `table`: a CSV or Parquet file that names the pictures below `data.root` and their labels.

Columns: path and label; where there are such columns, split (train, val or test) and group. With a separator, a cell of
the column label lists any number of classes: none, where it is empty. A list column of a Parquet file does so without.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG

import torch

from trainlib.data.identity.names import PrefixedNames
from trainlib.data.identity.stamp import Stamp, Stamps
from trainlib.data.pictures.files import PlainFiles
from trainlib.data.sources.folders.folder_walk import NUM_THREADS
from trainlib.data.sources.folders.layout import absolute, name_some
from trainlib.data.sources.groups import BY_FOLDER
from trainlib.data.sources.samples import SPLITS, Samples
from trainlib.data.targets import set_of
from trainlib.errors import DataError

SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
DELIMITERS = ",;\t"
MISTAKES_SHOWN = 10
MAX_CELL = 1 << 20  # characters
AT_ONCE = 1_000  # rows whose files one thread asks for before it takes others


@dataclass(frozen=True)
class _Row:
    """One picture of the table; `number` counts rows as a spreadsheet shows them, the column names being row 1."""

    number: int
    path: str
    labels: tuple[str, ...]
    split: str
    group: str | None


Cells = Mapping[str, str | list[str] | None]  # of one row, by column


def list_table(root: Path, table: str, *, group: str | None = None, separator: str | None = None) -> Samples:
    """List the pictures that a table names, in its order within each split; none is decoded.

    group   the column with the group of each picture; None for the column "group" where there is one; "folder" for the
            folder that the picture lies in
    separator   what stands between the names of several classes in a cell; None: a picture is of one class

    Raises DataError with all mistakes, by the number of their row.
    """
    root, file = absolute(root), absolute(table)
    if not root.is_dir():
        raise DataError(f"data.root: {root} {'is not a folder' if root.exists() else 'does not exist'}")
    columns, cells = _read(file)
    _check_columns(file, columns, group)
    mistakes: list[str] = []
    rows = list(_rows(cells, columns, group, root, separator, mistakes))
    stamps = _stamps(root, rows, mistakes)
    mistakes += _repeated(rows)
    if mistakes:
        more = [f"  ... and {len(mistakes) - MISTAKES_SHOWN} more"] if len(mistakes) > MISTAKES_SHOWN else []
        lines = [f"  {mistake}" for mistake in mistakes[:MISTAKES_SHOWN]]
        raise DataError("\n".join([f"data.table: {file} cannot be used; correct its rows:", *lines, *more]))
    return _samples(file, root, rows, stamps, are_sets=separator is not None)


def _samples(file: Path, root: Path, rows: Sequence[_Row], stamps: Sequence[Stamp], *, are_sets: bool) -> Samples:
    order = [i for split in SPLITS for i, row in enumerate(rows) if row.split == split]
    rows, stamps = [rows[i] for i in order], [stamps[i] for i in order]
    classes = tuple(sorted({label for row in rows for label in row.labels}))
    position = {name: label for label, name in enumerate(classes)}
    labels = [[position[label] for label in row.labels] for row in rows]
    counts = {split: sum(row.split == split for row in rows) for split in SPLITS}
    trained = {label for row in rows if row.split == "train" for label in row.labels}
    if len(trained) < 2:
        raise DataError(f"data.table: {file} has training rows of {len(trained)} class(es), and needs two or more")
    if untrained := [name for name in classes if name not in trained]:
        raise DataError(f"data.table: {file} has no training row of {name_some(untrained)}: a split cannot test these")
    names = [row.path for row in rows]
    return Samples(
        source="table",
        classes=classes,
        counts=counts,
        names=names,
        labels_N=set_of(labels, len(classes)) if are_sets else torch.tensor([label for [label] in labels]),
        stamps=Stamps.of(stamps),
        files=PlainFiles(PrefixedNames(names, [(f"{root}/", len(names))])),
        groups=None if rows[0].group is None else [row.group or "" for row in rows],
    )


def _read(file: Path) -> tuple[list[str], Iterator[Cells]]:
    """Return the names of the columns, and the rows by column."""
    if not file.is_file():
        raise DataError(f"data.table: {file} {'is no file' if file.exists() else 'does not exist'}")
    if file.suffix.lower() in (".parquet", ".pq"):
        return _read_parquet(file)
    return _read_csv(file)


def _read_csv(file: Path) -> tuple[list[str], Iterator[Cells]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"data.table: {file} is no text in UTF-8 ({error}): save it as CSV, UTF-8") from error
    except OSError as error:
        raise DataError(f"data.table: {file} cannot be read: {error}") from error
    first = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=first.count)
    csv.field_size_limit(MAX_CELL)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [name.strip() for name in next(lines, [])]
    except csv.Error as error:
        raise DataError(f"data.table: {file}, row 1: {error}") from error

    def rows() -> Iterator[Cells]:
        number = 2
        try:
            for cells in lines:
                if len(cells) > len(columns):
                    found = f"it has {len(cells)} cells, and there are {len(columns)} columns"
                    raise csv.Error(f"{found}; text with a {delimiter!r} in it needs quotes")
                yield dict(zip(columns, [*cells, *[None] * (len(columns) - len(cells))], strict=True)) if cells else {}
                number += 1
        except csv.Error as error:
            raise DataError(f"data.table: {file}, row {number}: {error}") from error

    return columns, rows()


def _read_parquet(file: Path) -> tuple[list[str], Iterator[Cells]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"data.table: {file} is a Parquet file, for which pyarrow is missing: pip install 'trainlaunch[parquet]', "
            "or save the table as CSV"
        ) from error
    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"data.table: {file} cannot be read: {error}") from error
    values = {name: table.column(name).to_pylist() for name in table.column_names}
    rows = ({name: _text(column[i]) for name, column in values.items()} for i in range(table.num_rows))
    return list(table.column_names), rows


def _text(cell: object) -> str | list[str] | None:
    return [_name(one) or "" for one in cell] if isinstance(cell, list) else _name(cell)


def _name(value: object) -> str | None:
    if value is None or value != value:  # not a number: how some programs write that there is none
        return None
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def _check_columns(file: Path, columns: Sequence[str], group: str | None) -> None:
    needed = ["path", "label", *([group] if group not in (None, BY_FOLDER) else [])]
    missing = [name for name in needed if name not in columns]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if missing:
        named = " (data.group names it)" if missing == [group] else ""
        raise DataError(
            f"data.table: {file} has no column {' and no column '.join(map(repr, missing))}{named}; its columns are "
            f"{name_some(columns)}"
        )
    if twice:
        raise DataError(f"data.table: {file} has two columns {name_some(twice)}: remove one")
    if "weight" in columns:
        raise DataError(
            f"data.table: {file} has a column 'weight', and weights of single samples are not trained with: use "
            "loss.weight for classes or data.balance, and remove or rename the column"
        )


def _rows(
    cells: Iterator[Cells],
    columns: Sequence[str],
    group: str | None,
    root: Path,
    separator: str | None,
    mistakes: list[str],
) -> Iterator[_Row]:
    """Yield the rows; what is wrong with one is added to `mistakes`. Empty lines are no rows."""
    if group is None and "group" in columns:
        group = "group"
    for number, row in enumerate(cells, 2):
        if not row:
            continue
        labels, wrong = _labels(row["label"], separator)
        found = {name: value.strip() if isinstance(value, str) else "" for name, value in row.items()}
        wrong += [f"{name} is empty" for name in ("path", "split") if name in found and not found[name]]
        if group not in (None, BY_FOLDER) and not found[group]:
            wrong.append(f"{group} is empty; a picture that stands alone needs a group of its own")
        split = found.get("split", "train")
        if split and split not in SPLIT_NAMES:
            wrong.append(f"split is {split!r}, must be train, val or test")
        path = _below(root, found["path"])
        if path is None:
            wrong.append(f"path {found['path']!r} leads out of data.root, {root}")
        if wrong:
            mistakes.append(f"row {number}: {', and '.join(wrong)}")
            continue
        assert path is not None
        of_group = os.path.dirname(path) if group == BY_FOLDER else found[group] if group else None
        yield _Row(number, path, labels, SPLIT_NAMES[split], of_group)


def _labels(cell: str | list[str] | None, separator: str | None) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes that a cell names, and what is wrong with it. Names are without blanks around them."""
    listed = [cell or ""] if not isinstance(cell, list) else cell
    if separator is not None:
        if isinstance(cell, list) and (parted := [name for name in cell if separator in name]):
            rule = f"label {parted[0]!r} holds data.label_separator, {separator!r}: set that to what no name holds"
            return (), [rule]
        names = [name for text in listed for name in text.split(separator)]
        return tuple(dict.fromkeys(filter(None, map(str.strip, names)))), []
    if isinstance(cell, list) or ";" in (cell or ""):
        return (), [f"label is {cell!r}: for several labels set data.labels=several and loss.name=BCEWithLogitsLoss"]
    name = listed[0].strip()
    return (name,), [] if name else ["label is empty"]


def _below(root: Path, path: str) -> str | None:
    """Return the path relative to the root, in its simplest form; None where it leads out of it."""
    relative = os.path.relpath(path, root) if os.path.isabs(path) else os.path.normpath(path)
    return None if relative == ".." or relative.startswith(f"..{os.sep}") else relative


def _stamps(root: Path, rows: Sequence[_Row], mistakes: list[str]) -> list[Stamp]:
    """Ask for each file; one that is missing is a mistake."""

    def ask(row: _Row) -> Stamp | str:
        try:
            status = os.stat(root / row.path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return f"row {row.number}: {row.path}: {reason}"
        return Stamp.of(status) if S_ISREG(status.st_mode) else f"row {row.number}: {row.path} is no file"

    def ask_some(start: int) -> list[Stamp | str]:
        return [ask(row) for row in rows[start : start + AT_ONCE]]

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        answers = [answer for some in pool.map(ask_some, range(0, len(rows), AT_ONCE)) for answer in some]
    mistakes += [answer for answer in answers if isinstance(answer, str)]
    return [answer for answer in answers if isinstance(answer, Stamp)]


def _repeated(rows: Sequence[_Row]) -> list[str]:
    first: dict[str, int] = {}
    again = [row for row in rows if first.setdefault(row.path, row.number) != row.number]
    return [f"row {row.number}: {row.path} is in row {first[row.path]} already" for row in again]
