"""Image files in class folders: what is a class, what is a picture, what is left out. All mistakes are told at once."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainlib.data.identity.listing import Stamp
from trainlib.data.storage.entry import ImageFile
from trainlib.errors import DataError

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# What file managers, archives and network drives leave behind, in lower case; hidden ones are left out too.
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found"}
    | {"@recycle", "__pycache__"}
)
NAMED_AT_MOST = 10
LAYOUT = "The layout is data.root/train/<class>/<image> and data.root/test/<class>/<image>."

logger = logging.getLogger("trainlib.data")


def find_images(folder: str) -> list[str]:
    """Return the paths of all image files in the folder and those below it, sorted, without hidden ones."""
    return sorted(file.path for file in _walk(folder, ancestors=()) if _is_image(file.name))


@dataclass(frozen=True)
class SplitFolder:
    """The files in root/train or in root/test.

    classes     the images of each class, sorted by path; classes sorted by name
    left_out    files that belong to no class: not an image by their name, or outside of the class folders
    broken      links whose target is missing
    """

    folder: Path
    classes: dict[str, list[ImageFile]]
    left_out: list[str]
    broken: list[str]

    def files(self, class_names: Sequence[str]) -> list[ImageFile]:
        """Return the files of these classes, in their order; a class that is not there has none."""
        return [file for name in class_names for file in self.classes.get(name, [])]

    def labels(self, class_names: Sequence[str]) -> Tensor:
        """Return the label of each of `files`, int64 [N]: the position of its class."""
        counts = torch.tensor([len(self.classes.get(name, [])) for name in class_names], dtype=torch.int64)
        return torch.arange(len(class_names)).repeat_interleave(counts)

    def names(self, files: Sequence[ImageFile]) -> list[str]:
        """Return the path of each file below this folder."""
        start = len(str(self.folder)) + 1
        return [file.path[start:] for file in files]


def list_images(root: Path, *, warn: bool = True) -> tuple[SplitFolder, SplitFolder]:
    """List the image files of train and of test; nothing is decoded.

    Raises DataError with everything that is wrong. A warning names the files that are left out.
    """
    root = Path(os.path.expanduser(root)).absolute()  # which does not raise where there is no such user
    _check_split_folders(root)
    train, test = _list_split(root / "train"), _list_split(root / "test")
    mistakes = _mistakes(train, test)
    left_out = train.left_out + test.left_out
    notice = (
        f"Files left out, not images by their names or outside of the class folders ({len(left_out)}): "
        f"{_name_some(left_out)}. Move them away; save images of another format as PNG or JPEG."
    )
    if mistakes:
        lines = [f"data.root: the image folders in {root} cannot be used:", *(f"  {mistake}" for mistake in mistakes)]
        raise DataError("\n".join([*lines, *([f"  {notice}"] if left_out else []), LAYOUT]))
    if left_out and warn:
        logger.warning("%s", notice)
    if warn and (repeated := _repeated_folders(train)):
        logger.warning("%s", repeated)
    return train, test


def list_class_folders(folder: Path, class_names: Sequence[str]) -> SplitFolder:
    """List the image files in folder/<class>/ for a model of these classes, of which some may be missing.

    Raises DataError with everything that is wrong.
    """
    folder = Path(os.path.expanduser(folder)).absolute()
    if not folder.is_dir():
        raise DataError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    split = _list_split(folder)
    mistakes = _unusable(split)
    unknown = [name for name in split.classes if name not in class_names]
    if unknown:
        shown = [name + _did_you_mean(name, class_names) for name in unknown]
        mistakes.append(
            f"Folders that are no class of the model ({len(unknown)}): {_name_some(shown)}. Its classes are "
            f"{_name_some(class_names)}."
        )
    if mistakes:
        raise DataError("\n".join([f"{folder} cannot be used:", *(f"  {mistake}" for mistake in mistakes)]))
    return split


def _check_split_folders(root: Path) -> None:
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise DataError(f"data.root: {root} {state}. {LAYOUT}")
    missing = [split for split in ("train", "test") if not (root / split).is_dir()]
    if not missing:
        return
    there = sorted(entry.name for entry in _visible(root) if entry.is_dir())
    text = f"data.root: {root} has no folder {' and no folder '.join(repr(split) for split in missing)}"
    text += f" (its folders: {_name_some(there)}). {LAYOUT}" if there else f" (it has no folders). {LAYOUT}"
    if len(missing) == 2 and any(_holds_image(root / name) for name in there):
        text += " These look like class folders: move them into train/, and a share of each one's images into test/."
    elif len(missing) == 2 and (inside := [name for name in there if (root / name / "train").is_dir()]):
        text += f" {root / inside[0]} has them: set data.root to it."
    elif missing == ["test"]:
        text += " Make test/ with a share of each class's images, which training must not see."
    raise DataError(text)


def _holds_image(folder: Path) -> bool:
    return any(_is_image(entry.name) for entry in _visible(folder))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _visible(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return a folder's entries by name, without hidden ones and those that file managers leave behind."""
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if not _is_junk(e)]
    except OSError as error:
        raise DataError(f"data.root: a folder cannot be read: {error}. Grant yourself access, or move it.") from error
    return sorted(kept, key=lambda entry: entry.name)


def _is_junk(entry: os.DirEntry[str]) -> bool:
    name = entry.name.lower()
    return name.startswith(".") or name in SYSTEM_FILES or (name in SYSTEM_FOLDERS and entry.is_dir())


def _list_split(folder: Path) -> SplitFolder:
    split = SplitFolder(folder, {}, [], [])
    for entry in _visible(folder):
        if not entry.is_dir():
            split.left_out.append(entry.path)
            continue
        images = split.classes.setdefault(entry.name, [])
        for file in _walk(entry.path, ancestors=()):
            if not _is_image(file.name):
                split.left_out.append(file.path)
                continue
            try:
                status = file.stat()
            except FileNotFoundError:
                split.broken.append(file.path)
            else:
                images.append(ImageFile(file.path, Stamp.of(status)))
        images.sort(key=lambda image: image.path)
    return split


def _walk(folder: str, ancestors: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    """Yield all files below the folder; links are followed, but not back to a folder on the way to them."""
    real = os.path.realpath(folder)
    if real in ancestors:
        return
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _walk(entry.path, (*ancestors, real))
        else:
            yield entry


def _mistakes(train: SplitFolder, test: SplitFolder) -> list[str]:
    """Return one sentence for each kind of mistake, with the fix."""
    if not train.classes:
        return _unusable(train)
    found = _unusable(train, test)
    if len(train.classes) == 1:
        found.append(_one_class(train))
    missing = [name for name in train.classes if name not in test.classes]
    unknown = [name for name in test.classes if name not in train.classes]
    if missing:
        shown = [name + _did_you_mean(name, unknown) for name in missing]
        found.append(
            f"Classes of train that are missing from test ({len(missing)}): {_name_some(shown)}. "
            "Put some of their images there, or delete them."
        )
    if unknown:
        shown = [name + _did_you_mean(name, missing) for name in unknown]
        found.append(
            f"Classes of test that are missing from train ({len(unknown)}): {_name_some(shown)}. Rename or delete them."
        )
    return found


def _one_class(train: SplitFolder) -> str:
    """Return the sentence that a single class is not enough, with what it probably comes from."""
    name = next(iter(train.classes))
    text = f"{train.folder} has one class folder only, {name!r}, and needs two or more: there is nothing to tell apart."
    inner = _inner_folders(train, name)
    if len(inner) > 1:
        text += (
            f" It holds the folders {_name_some(inner)}. If these are the classes, there is one level of folders too "
            f"many: move them up into {train.folder}, and those of test likewise."
        )
    return text


def _inner_folders(split: SplitFolder, name: str) -> list[str]:
    """Return the folders in a class folder that its images are in; none if some images are not in any."""
    start, found = len(os.path.join(split.folder, name, "")), set()
    for image in split.classes[name]:
        folder, is_inside, _ = image.path[start:].partition(os.sep)
        if not is_inside:
            return []
        found.add(folder)
    return sorted(found)


def _repeated_folders(train: SplitFolder) -> str | None:
    """Return a warning if every class folder holds the same folders, which then are more likely the classes."""
    names = list(train.classes)
    inner = _inner_folders(train, names[0])
    if len(inner) < 2 or any(_inner_folders(train, name) != inner for name in names[1:]):
        return None
    return (
        f"every class folder in {train.folder} ({_name_some(names)}) holds the same folders, "
        f"{_name_some(inner)}: if these are the classes, there is one level of folders too many"
    )


def _unusable(*splits: SplitFolder) -> list[str]:
    """Return the mistakes that do not depend on the other split: no classes, broken links, empty classes."""
    if not any(split.classes for split in splits):
        return [f"{splits[0].folder} has no class folders: sort its images into one folder for each class."]
    found = []
    if broken := [path for split in splits for path in split.broken]:
        found.append(f"Links that lead to no file ({len(broken)}): {_name_some(broken)}. Delete or mend them.")
    empty = [f"{split.folder.name}/{name}" for split in splits for name, files in split.classes.items() if not files]
    if empty:
        found.append(f"Class folders without an image ({len(empty)}): {_name_some(empty)}. Fill or delete them.")
    return found


def _did_you_mean(name: str, candidates: Sequence[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (the same as {by_lower[close[0]]!r} there?)" if close else ""


def _name_some(names: Sequence[str]) -> str:
    text = ", ".join(names[:NAMED_AT_MOST])
    return text if len(names) <= NAMED_AT_MOST else f"{text} and {len(names) - NAMED_AT_MOST} more"
