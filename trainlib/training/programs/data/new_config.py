"""Write a configuration for pictures: `python -m trainlib.training.programs.data.new_config FOLDER FILE`."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from trainlib.config import DataConfig, load_config, shipped_configs
from trainlib.config.docs.json_schema import schema_line
from trainlib.config.reading.yaml_source import parse_value, read_file
from trainlib.data.sources.folders.folder_walk import visible
from trainlib.data.sources.folders.layout import SPLIT_FOLDERS, DiskTree, name_some
from trainlib.data.sources.listed import found_samples, tell
from trainlib.data.sources.packed.archive import ENDINGS
from trainlib.data.survey.looking import FilePictures, Stored, look_at_all
from trainlib.data.targets import are_sets, class_sizes
from trainlib.errors import EXIT_OK, DataError, TrainlaunchError, UserError
from trainlib.runs.terminal.printable import print_error, printable
from trainlib.runs.terminal.streams import end_program

FEW_PICTURES = 500  # to train on, below which the recipe is that for little data
LOOKED_AT = 500  # pictures at most, evenly spaced: of more, training finds what is damaged
TABLES = (".csv", ".tsv", ".parquet")
LINE = 118  # characters
_PLAIN = re.compile(r"[A-Za-z0-9_./][\w./-]*", re.ASCII)
HF_FILES = ("dataset_dict.json", "dataset_info.json", "state.json")
LEAST_SIZE = 128  # pixels: a network that has learnt from photographs sees little in images that are much smaller
FEW = 5  # pictures of a class that are too few to learn and to judge from
SMALL = 100  # pictures of a class, below which a fifth is held out for validation instead of a tenth
WANTED_STEPS = 1000


@dataclass(frozen=True)
class Seen:
    """What was found of a data set.

    data     the values of the section `data` that say where and what it is
    splits   number of pictures in each of "train", "val" and "test", as the data bring them
    counts   pictures of each class, of all splits
    side     the shorter side of the pictures in pixels, their median
    are_sets True where a picture may have several classes
    """

    data: Mapping[str, Any]
    splits: Mapping[str, int]
    counts: Mapping[str, int]
    side: int
    are_sets: bool = False

    @property
    def held_out(self) -> dict[str, float]:
        """Return the fractions for the splits that the data do not bring."""
        val = 0.1 if min(self.counts.values()) >= SMALL else 0.2
        fractions = {"test": ("test_fraction", 0.2), "val": ("val_fraction", val)}
        return {key: fraction for split, (key, fraction) in fractions.items() if not self.splits.get(split)}

    @property
    def num_training(self) -> int:
        """Return about how many pictures are left to train on."""
        left = self.splits["train"] * np.prod([1 - fraction for fraction in self.held_out.values()])
        return max(1, round(float(left)))

    @property
    def batch_size(self) -> int:
        """Return the largest of 32, 16 and 8 that leaves 20 steps an epoch; 8 where none does."""
        return next((size for size in (32, 16) if self.num_training // size >= 20), 8)

    @property
    def epochs(self) -> int:
        """Return as many epochs as make `WANTED_STEPS`, from 10 to 30."""
        return min(30, max(10, -(-WANTED_STEPS // -(-self.num_training // self.batch_size))))

    @property
    def image_size(self) -> int:
        """Return 224, or the next multiple of 32 for smaller pictures, but no less than `LEAST_SIZE`."""
        return min(224, max(LEAST_SIZE, -(-self.side // 32) * 32))


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at the folder, write the file, say what was found; return the exit code (see `errors`)."""
    folder, file = sys.argv[1:] if arguments is None else arguments
    try:
        seen = _look(folder)
        text = yaml_text(seen, folder, file)
        load_config([_read_back(text, folder), "name=x"])  # what is written is right
        write_new(Path(file), text)
    except TrainlaunchError as error:
        print_error(error)
        return error.exit_code
    print(f"{printable(file)}: {summary(seen)}")
    if few := [name for name, count in seen.counts.items() if count < FEW]:
        print(f"note: {name_some(few)}: fewer than {FEW} pictures, too few to learn and to test", file=sys.stderr)
    return EXIT_OK


def _read_back(text: str, folder: str) -> Any:
    """Return the values in the text. Raises UserError for a name with bytes or characters that YAML does not have."""
    try:
        return yaml.safe_load(text)
    except yaml.reader.ReaderError:
        raise UserError(
            f"{folder}: no configuration can hold this name: rename it, or make a link with a plain name (ln -s)"
        ) from None


def _look(folder: str) -> Seen:
    """Return what `look` returns; its errors name the folder, where those of a configuration name `data.root`."""
    try:
        return look(folder)
    except DataError as error:
        told = str(error).removeprefix("data.root: ").replace("set data.root to it", "give that folder")
        raise DataError(told.replace("data.root/", f"{folder.rstrip('/')}/")) from error


def look(folder: str) -> Seen:
    """Return what is in a folder, archive or table of pictures. Raises DataError where it cannot be trained on."""
    data = data_section(folder)
    samples = found_samples(DataConfig.model_validate(data))
    tell(samples)
    chosen = np.linspace(0, len(samples) - 1, min(len(samples), LOOKED_AT)).round().astype(int).tolist()
    print(f"looking at {len(chosen)} of {len(samples)} pictures ...", file=sys.stderr, flush=True)
    source = FilePictures(samples.files)
    looks = look_at_all(_Chosen(source, chosen), len(chosen), None, lambda done: None)
    if looks.damaged:
        places = [f"{samples.files.describe(chosen[i])} ({reason})" for i, reason in looks.damaged.items()]
        raise DataError(
            f"{len(places)} of {len(chosen)} pictures that were looked at cannot be read: {name_some(places)}. "
            "Delete or mend them; launch data shows all"
        )
    sizes = class_sizes(samples.labels_N, len(samples.classes)).tolist()
    counts = dict(zip(samples.classes, map(int, sizes), strict=True))
    side = int(np.median(looks.sizes_N2.min(axis=1)))
    return Seen(data, samples.counts, counts, side, are_sets(samples.labels_N))


class _Chosen:
    """Some of the pictures of a source."""

    def __init__(self, source: FilePictures, indices: Sequence[int]):
        self._source, self._indices = source, indices

    def stored(self, index: int) -> Stored:
        """Return a picture as it is stored."""
        return self._source.stored(self._indices[index])

    def picture(self, stored: Stored, needed: int) -> Tensor:
        """Return its pixels."""
        return self._source.picture(stored, needed)


def data_section(place: str) -> dict[str, str]:
    """Return which `data.name` a place has, and its root and table: class folders, else a table, else archives."""
    path = Path(place)
    if path.is_file():
        if path.suffix.lower() in TABLES:
            return _table(path.parent, path)
        if not place.lower().endswith(ENDINGS):
            raise UserError(f"{place}: is a file, must be a folder of pictures, an archive (.tar) or a table (.csv)")
        return {"name": "archive", "root": place}
    entries = visible(place)
    files = [entry.name for entry in entries if not entry.is_dir()]
    if any(name in HF_FILES for name in files):
        return {"name": "hf", "root": place}
    tree = DiskTree(path)
    base = "train" if "train" in tree.folders("") and not tree.has_pictures("train") else ""
    if sum(_holds_pictures(tree, f"{base}/{name}".strip("/")) for name in tree.folders(base)) > 1:
        return {"name": "image_folder", "root": place}
    tables = [name for name in files if name.lower().endswith(TABLES) and _names_pictures(path / name)]
    if len(tables) > 1:
        commands = " or ".join(shlex.join(["launch", "init", str(path / name)]) for name in tables)
        raise UserError(f"{place} has the tables {name_some(tables)}: type {commands}")
    if tables:
        return _table(path, path / tables[0])
    folders = [".", *(name for name in tree.folders("") if name in SPLIT_FOLDERS)]
    if any(name.lower().endswith(ENDINGS) for folder in folders for name in os.listdir(path / folder)):
        return {"name": "archive", "root": place}
    return {"name": "image_folder", "root": place}


def _holds_pictures(tree: DiskTree, folder: str) -> bool:
    return tree.has_pictures(folder) or any(tree.has_pictures(f"{folder}/{inner}") for inner in tree.folders(folder))


def _names_pictures(file: Path) -> bool:
    """Return True for a table that has the columns path and label; a Parquet file is taken to have them."""
    return file.suffix.lower() == ".parquet" or {"path", "label"} <= set(_rows(file).fieldnames or ())


def _table(root: Path, file: Path) -> dict[str, str]:
    """Return the section of a table; several labels for a picture are separated by semicolons."""
    section = {"name": "table", "root": str(root), "table": str(file)}
    if file.suffix.lower() != ".parquet" and any(";" in (row.get("label") or "") for row in _rows(file)):
        section["labels"] = "several"
    return section


def _rows(file: Path) -> csv.DictReader[str]:
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    delimiter = max(",;\t", key=(lines[0] if lines else "").count)
    return csv.DictReader(lines, delimiter=delimiter)


def yaml_text(seen: Seen, place: str, file: str) -> str:
    """Return the text of the configuration, with comments."""
    recipe = "finetune_small_data" if seen.num_training < FEW_PICTURES else "finetune"
    values = read_file(shipped_configs()[recipe], recipe).values
    data = dict(seen.data) | seen.held_out | {"image_size": seen.image_size}
    data |= {key: values["data"][key] for key in ("augment",) if key in values["data"]}
    train = {key: value for key, value in values.get("train", {}).items() if key != "steps"} | {
        "epochs": seen.epochs,
        "batch_size": seen.batch_size,
    }
    steps = -(-seen.num_training // seen.batch_size)
    run = printable(shlex.quote(f"./{file}" if "=" in file or file.startswith("-") else file))
    comments = {
        "data": [
            "What is there, and what is held out for validation and the test: a share of each class, where the data",
            "bring no such split. A larger image_size sees more and takes longer. augment: random changes in training.",
        ],
        "model": ["Or another network: model.name=convnext_tiny. Its new last layer learns alone until `unfreeze`."],
        "train": [f"About {seen.num_training} training pictures: {steps} steps an epoch."],
    }
    lines = [
        schema_line(),
        f"# {printable(place)}: {summary(seen)}.",
        "# Written by `launch init`; change what you like.",
        "#",
        f"#   launch run {run}       train; the results go to runs/<the name of this file>",
        f"#   launch check {run}     every key with its value; docs/config.md says what each means",
        f"#   launch data {run}      what is in the pictures: damage, duplicates, leaks",
        "#",
        f"# The recipe is that of `{recipe}`, with batch size and epochs for as many pictures.",
        "",
    ]
    if seen.are_sets:
        values = values | {"loss": {"name": "BCEWithLogitsLoss"}}
    sections = {"data": data, **{key: value for key, value in values.items() if key not in ("name", "data", "train")}}
    for name, section in (sections | {"train": train}).items():
        lines += [f"# {comment}" for comment in comments.get(name, ())]
        lines += _section(name, section)
    return "\n".join(lines) + "\n"


def summary(seen: Seen) -> str:
    """Return what was found in one line."""
    total = sum(seen.splits.values())
    sizes = [f"{name} {count}" for name, count in seen.counts.items()]
    parts = ", ".join(f"{count} {split}" for split, count in seen.splits.items() if count)
    splits = f" ({parts})" if sum(map(bool, seen.splits.values())) > 1 else ""
    return printable(f"{total:,} pictures{splits} of {len(sizes)} classes, {name_some(sizes)}")


def write_new(file: Path, text: str) -> None:
    """Write a file that does not exist yet. Raises UserError where it does, or cannot be written."""
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise UserError(f"{file} exists already; move it away to have a new one written") from None
    except (OSError, UnicodeEncodeError) as error:
        with suppress(OSError):  # it is not there; on a full disk it is, and empty
            file.unlink()
        raise UserError(f"{file}: cannot be written: {error}") from error


def _section(name: str, value: Any) -> list[str]:
    """Return a section as lines of YAML: in one where there is room, else one for each key."""
    whole = f"{name}: {_flow(value)}"
    if not isinstance(value, dict) or (len(whole) <= LINE and name != "data"):
        return [whole]
    return [f"{name}:", *(f"  {key}: {_flow(inner)}" for key, inner in value.items())]


def _flow(value: Any) -> str:
    """Return a value as YAML in one line; what could be read as another type is quoted."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and parse_value(value, "") == value:
        return value
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    end_program(main)
