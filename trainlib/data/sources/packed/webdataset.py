"""Shards in webdataset's form: a picture and its label are members of one name, as in 1.jpg and 1.cls or 1.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

from trainlib.data.sources.folders.folder_walk import is_image
from trainlib.data.sources.folders.layout import SPLIT_FOLDERS, name_some
from trainlib.data.sources.packed.members import Archive, ArchiveFiles, MemberPlace
from trainlib.errors import DataError

LABEL_ENDINGS = ("cls", "json")
LABEL_KEYS = ("label", "cls", "class", "class_name")  # of a .json, the first that is there
MAX_LABEL = 1 << 20  # bytes


def is_webdataset(archives: Sequence[Archive], places: Mapping[str, MemberPlace]) -> bool:
    """Return True if some picture has a label of its name beside it.

    A .json beside a picture in a class folder may be anything, such as boxes that somebody drew: it is read.
    """
    labels: dict[str, str] = {}
    for name in places:
        key, ending = _key(name)
        if ending in LABEL_ENDINGS:
            labels[key] = min(name, labels.get(key, name))
    label = next((labels[_key(name)[0]] for name in places if is_image(name) and _key(name)[0] in labels), None)
    if label is None or not label.lower().endswith(".json") or os.path.dirname(label) in ("", *SPLIT_FOLDERS):
        return label is not None
    try:
        _label(ArchiveFiles(archives, [places[label]]), 0)
    except DataError:
        return False
    return True


def label_folders(archives: Sequence[Archive], places: Mapping[str, MemberPlace]) -> dict[str, MemberPlace]:
    """Return the pictures as if they lay in a folder of their label: <split>/<label>/<name>.

    What is hidden, as by macOS, keeps its name.

    Raises DataError naming pictures without a label, with two, or with one that cannot be read.
    """
    pictures: dict[str, list[tuple[str, MemberPlace]]] = {}
    labels: dict[str, list[tuple[str, MemberPlace]]] = {}
    for name, place in places.items():
        key, ending = _key(name)
        if ending in LABEL_ENDINGS:
            labels.setdefault(key, []).append((name, place))
        elif is_image(name) and not _is_hidden(name):
            pictures.setdefault(key, []).append((name, place))
    wrong = [found[0][0] for key, found in pictures.items() if len(found) > 1 or key not in labels]
    if wrong:
        raise DataError(
            f"data.root: {len(wrong)} picture(s) have no label, or share one: {name_some(wrong)}. In webdataset's form "
            "each picture has a file of its name beside it, .cls or .json"
        )
    chosen = [min(labels[key]) for key in pictures]  # .cls before .json
    files = ArchiveFiles(archives, (place for _, place in chosen))
    found = {name: place for name, place in places.items() if _is_hidden(name)}
    for index, [(name, place)] in enumerate(pictures.values()):
        folder, _, rest = name.partition("/")
        split = f"{folder}/" if folder in SPLIT_FOLDERS and rest else ""
        label = _label(files, index)
        found[f"{split}{label}/{name[len(split) :]}"] = place
    return found


def _label(files: ArchiveFiles, index: int) -> str:
    """Read a label, as the name of a class."""
    try:
        if files.size(index) > MAX_LABEL:
            raise ValueError(f"it has more than {MAX_LABEL} bytes")
        text = files.read(index).decode().strip()
        label = _of_json(text) if files.describe(index).lower().endswith(".json") else text
        if not label or "/" in label or label in (".", ".."):
            raise ValueError(f"got {label[:100]!r}, must be a number or a name without a slash")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"data.root: {files.describe(index)} is no label: {error}") from error
    return label


def _of_json(text: str) -> str:
    values = json.loads(text)
    for key in LABEL_KEYS:
        if isinstance(values, dict) and isinstance(value := values.get(key), str | int):
            return str(value)
    raise ValueError(f"must be an object with one of {', '.join(LABEL_KEYS)}, a number or a text")


def _is_hidden(name: str) -> bool:
    return os.path.basename(name).startswith(".")


def _key(name: str) -> tuple[str, str]:
    """Return a member's name up to the first dot of its file name, and what follows in lower case."""
    folder, file = os.path.split(name)
    key, _, ending = file.partition(".")
    return os.path.join(folder, key), ending.lower()
