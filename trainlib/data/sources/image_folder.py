"""The data set `image_folder`: pictures in class folders, in one folder for each split or directly in the root.

Either root/train/<class>/... with root/val, root/valid or root/validation, and root/test, each where there is one; or
root/<class>/..., of which the test split is drawn (see `complete_splits`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainlib.data.dataset import ImageSet
from trainlib.data.identity.stamp import Stamps
from trainlib.data.pictures.files import PlainFiles
from trainlib.data.sources.class_folders import (
    SplitFolder,
    list_class_folders,
    list_split,
    mistakes_of,
    name_some,
    repeated_folders,
)
from trainlib.data.sources.folder_walk import is_image, visible, walk_folders
from trainlib.data.sources.groups import folder_groups
from trainlib.data.sources.samples import Samples
from trainlib.data.storage.cache import load_decoded
from trainlib.errors import DataError

VALIDATION_FOLDERS = ("val", "valid", "validation")
SPLIT_FOLDERS = ("train", *VALIDATION_FOLDERS, "test")
LAYOUT = (
    "The layout is data.root/train/<class>/<image> and, where there are such splits, data.root/val/<class>/<image> and "
    "data.root/test/<class>/<image>; or data.root/<class>/<image>, and data.test_fraction is held out for the test."
)

logger = logging.getLogger("trainlib.data")


@dataclass(frozen=True)
class Layout:
    """Which folders hold the splits, by name below the root; train is "" where the class folders lie in the root."""

    train: str
    val: str | None = None
    test: str | None = None


def find_images(folder: str) -> list[str]:
    """Return the paths of all image files in the folder and those below it, sorted, without hidden ones."""
    return sorted(os.path.join(folder, name) for name in walk_folders([folder])[0].names)


def list_image_folder(root: Path, *, group: str | None = None, warn: bool = True) -> Samples:
    """List the pictures under `root`, sorted by class name, then by path; nothing is decoded.

    group   "folder": the pictures of one folder below a class belong together

    Raises DataError with everything that is wrong. A warning names the files that are left out.
    """
    root = absolute(root)
    layout = find_layout(root)
    train = list_split(root / layout.train)
    val, test = (list_split(root / folder) if folder else None for folder in (layout.val, layout.test))
    _check(root, train, val, test, warn)
    classes = tuple(train.classes)
    splits = {"train": train, "val": val, "test": test}
    found = {split: listed for split, listed in splits.items() if listed is not None}
    names = {split: listed.names(classes) for split, listed in found.items()}
    folders = {"train": layout.train, "val": layout.val, "test": layout.test}
    prefixes = {split: f"{folder}/" for split, folder in folders.items() if folder}
    all_names = [name for split in found for name in names[split]]
    return Samples(
        source="image_folder",
        classes=classes,
        counts={"train": 0, "val": 0, "test": 0} | {split: len(names[split]) for split in found},
        names=all_names,
        labels_N=torch.cat([listed.labels(classes) for listed in found.values()]),
        stamps=Stamps(np.concatenate([listed.stamps(classes).rows_N4 for listed in found.values()])),
        files=PlainFiles([f"{listed.folder}/{name}" for split, listed in found.items() for name in names[split]]),
        folders=prefixes,
        groups=folder_groups(all_names, group),
    )


def find_layout(root: Path) -> Layout:
    """Return which folders below the root hold the splits. Raises DataError where that cannot be told."""
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data.root: {root} {state}. {LAYOUT}")
    there = [entry.name for entry in visible(str(root)) if entry.is_dir()]
    if not _has_split_folders(root, there):
        return _layout_without_train(root, there)
    validation = [name for name in VALIDATION_FOLDERS if name in there]
    if len(validation) > 1:
        raise DataError(
            f"data.root: {root} has the folders {' and '.join(validation)}, of which one can be the validation split: "
            "move the others away, or join them"
        )
    alike = [name for name in there if name not in SPLIT_FOLDERS and name.lower() in SPLIT_FOLDERS]
    if alike:
        raise DataError(
            f"data.root: {root} has the folders {name_some(alike)} beside train: write the names in lower case, or "
            "move them away"
        )
    if others := [name for name in there if name not in SPLIT_FOLDERS]:
        logger.warning("Folders in %s that are no split are not used: %s. %s", root, name_some(others), LAYOUT)
    return Layout("train", next(iter(validation), None), "test" if "test" in there else None)


def load_class_folder(folder: Path, class_names: Sequence[str], image_size: int) -> ImageSet:
    """Load the images in folder/<class>/ for a model of these classes, of which some may be missing.

    The images are square with `image_size` pixels a side, sorted by class, then by path.

    Raises DataError with everything that is wrong.
    """
    split = list_class_folders(folder, class_names)
    files = PlainFiles([f"{split.folder}/{name}" for name in split.names(class_names)])
    stamps = split.stamps(class_names)
    decoded = load_decoded(files, stamps, len(files), image_size, stop_requested=lambda: False, is_main=False)
    return ImageSet(decoded.train, split.labels(class_names))


def absolute(path: Path | str) -> Path:
    """Return the absolute path, with `~` expanded; unlike pathlib's it does not raise where there is no such user."""
    return Path(os.path.expanduser(path)).absolute()


def _has_split_folders(root: Path, there: Sequence[str]) -> bool:
    """Return True if `train` is the training split; False where it is missing, or a class beside others."""
    if "train" not in there:
        return False
    inside = visible(str(root / "train"))
    holds_pictures = any(is_image(entry.name) for entry in inside if not entry.is_dir())
    beside = [name for name in there if name not in SPLIT_FOLDERS]
    return not holds_pictures or any(entry.is_dir() for entry in inside) or not any(map(root.joinpath, beside))


def _layout_without_train(root: Path, there: Sequence[str]) -> Layout:
    """Return the layout of class folders directly in the root, or raise DataError where they are something else."""
    inside = [name for name in there if (root / name / "train").is_dir()]
    splits = [name for name in there if name.lower() in (*SPLIT_FOLDERS, "training", "testing")]
    if there and not splits and not inside:
        return Layout("")
    text = f"data.root: {root} has no folder 'train'"
    text += f" (its folders: {name_some(there)}). {LAYOUT}" if there else f" (it has no folders). {LAYOUT}"
    if inside:
        text += f" {root / inside[0]} has them: set data.root to it."
    elif splits:
        text += f" Is {splits[0]} a split? Then rename the one that is trained on to train."
    raise DataError(text)


def _check(root: Path, train: SplitFolder, val: SplitFolder | None, test: SplitFolder | None, warn: bool) -> None:
    """Raise DataError with all mistakes; warn of what is left out, and of folders that look like classes."""
    mistakes = mistakes_of(train, val, test)
    left_out = [path for split in (train, val, test) if split is not None for path in split.left_out]
    notice = (
        f"Files left out, not images by their names or outside of the class folders ({len(left_out)}): "
        f"{name_some(left_out)}. Move them away; save images of another format as PNG or JPEG."
    )
    if mistakes:
        lines = [f"data.root: the image folders in {root} cannot be used:", *(f"  {mistake}" for mistake in mistakes)]
        raise DataError("\n".join([*lines, *([f"  {notice}"] if left_out else []), LAYOUT]))
    if left_out and warn:
        logger.warning("%s", notice)
    if warn and (repeated := repeated_folders(train)):
        logger.warning("%s", repeated)
