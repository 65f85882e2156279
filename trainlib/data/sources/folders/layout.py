"""Where the splits lie: in folders of their own, or the class folders directly in the root, which is then divided."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainlib.data.sources.folders.folder_walk import is_image, visible
from trainlib.errors import DataError

VALIDATION_FOLDERS = ("val", "valid", "validation")
SPLIT_FOLDERS = ("train", *VALIDATION_FOLDERS, "test")
LAYOUT = (
    "The layout is data.root/train/<class>/<image> and, where there are such splits, data.root/val/<class>/<image> and "
    "data.root/test/<class>/<image>; or data.root/<class>/<image>, and data.test_fraction is held out for the test."
)
NAMED_AT_MOST = 10


@dataclass(frozen=True)
class Layout:
    """Which folders hold the splits, by name below the root; train is "" where the class folders lie in the root.

    notices   as in `Samples`
    """

    train: str
    val: str | None = None
    test: str | None = None
    notices: tuple[tuple[int, str], ...] = ()

    @property
    def folders(self) -> dict[str, str]:
        """The folder of each split that there is."""
        every = {"train": self.train, "val": self.val, "test": self.test}
        return {split: folder for split, folder in every.items() if folder is not None}

    @property
    def prefixes(self) -> dict[str, str]:
        """What comes before the names of each split's files in the whole data set."""
        return {split: f"{folder}/" if folder else "" for split, folder in self.folders.items()}


class Tree(Protocol):
    """Folders in a root: on disk, or in an archive."""

    def folders(self, path: str) -> list[str]:
        """Return the names of the folders in the folder `path` below the root, "" for the root itself."""
        ...

    def has_pictures(self, path: str) -> bool:
        """Return True if a picture lies directly in the folder `path` below the root."""
        ...


class DiskTree:
    """The folders below a root on disk."""

    def __init__(self, root: Path):
        self.root = root

    def folders(self, path: str) -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        return [entry.name for entry in visible(str(self.root / path)) if entry.is_dir()]

    def has_pictures(self, path: str) -> bool:
        """Return True if a picture lies directly in the folder."""
        return any(is_image(entry.name) and not entry.is_dir() for entry in visible(str(self.root / path)))


def choose_layout(place: str, tree: Tree) -> Layout:
    """Return which folders hold the splits. Raises DataError where that cannot be told.

    place   the root, for messages
    """
    there = tree.folders("")
    if not _has_split_folders(tree, there):
        return _layout_without_train(place, tree, there)
    validation = [name for name in VALIDATION_FOLDERS if name in there]
    if len(validation) > 1:
        raise DataError(
            f"data.root: {place} has the folders {' and '.join(validation)}, of which one can be the validation split: "
            "move the others away, or join them"
        )
    others = [name for name in there if name not in SPLIT_FOLDERS]
    if alike := [name for name in others if name.lower() in SPLIT_FOLDERS]:
        raise DataError(
            f"data.root: {place} has the folders {name_some(alike)} beside train: write the names in lower case, or "
            "move them away"
        )
    notice = f"Folders in {place} that are no split are not used: {name_some(others)}. {LAYOUT}"
    test = "test" if "test" in there else None
    return Layout("train", next(iter(validation), None), test, ((logging.WARNING, notice),) if others else ())


def older_layout(place: str, tree: Tree) -> Layout:
    """Return the layout for a run that began before validation folders were used: train and test alone.

    Other folders, whatever their names, are not used. Raises DataError where there is no train or test.
    """
    there = tree.folders("")
    if "train" not in there or "test" not in there:
        return choose_layout(place, tree)
    others = [name for name in there if name not in ("train", "test")]
    notice = f"Folders in {place} that are not used, as this run began before they were: {name_some(others)}."
    return Layout("train", None, "test", ((logging.INFO, notice),) if others else ())


def require_folder(root: Path) -> None:
    """Raise DataError where `data.root` is no folder."""
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        packed = "; for an archive, set data.name=archive" if root.suffix in (".zip", ".tar") and root.exists() else ""
        raise DataError(f"data.root: {root} {state}{packed}. {LAYOUT}")


def absolute(path: Path | str) -> Path:
    """Return the absolute path, with `~` expanded; unlike pathlib's it does not raise where there is no such user."""
    return Path(os.path.expanduser(path)).absolute()


def name_some(names: Sequence[str]) -> str:
    """Return the names; of many, the first ten and the number of the others."""
    text = ", ".join(names[:NAMED_AT_MOST])
    return text if len(names) <= NAMED_AT_MOST else f"{text} and {len(names) - NAMED_AT_MOST} more"


def _has_split_folders(tree: Tree, there: Sequence[str]) -> bool:
    """Return True if `train` is the training split; False where it is missing, or a class beside others."""
    if "train" not in there:
        return False
    is_class = tree.has_pictures("train") and not tree.folders("train")
    return not is_class or not any(name not in SPLIT_FOLDERS for name in there)


def _layout_without_train(place: str, tree: Tree, there: Sequence[str]) -> Layout:
    """Return the layout of class folders directly in the root, or raise DataError where they are something else."""
    inside = [name for name in there if "train" in tree.folders(name) and not tree.has_pictures(name)]
    classes = [name for name in there if name.lower() not in (*SPLIT_FOLDERS, "training", "testing")]
    splits = [name for name in there if name not in classes]
    if there and not inside and (not splits or "train" in there):
        return Layout("")
    if not there:
        raise DataError(f"data.root: {place} holds no folders of pictures. {LAYOUT}")
    text = f"data.root: {place} has no folder 'train' (its folders: {name_some(there)}). {LAYOUT}"
    if inside:
        text += f" {place}/{inside[0]} has them: set data.root to it."
    elif splits:
        text += f" Is {splits[0]} a split? Then rename the one that is trained on to train."
    raise DataError(text)
