"""Class folders of images: root/train/<class>/*, root/test/<class>/*. What is wrong with them is told all at once."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from trainlib.data.cache import ImageFile, decoded
from trainlib.data.images import Dataset, ImageSet
from trainlib.errors import DataError

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini"})
NAMED_AT_MOST = 10
LAYOUT = "The layout is data.root/train/<class>/<image> and data.root/test/<class>/<image>."

logger = logging.getLogger("trainlib.data")


def load_image_folder(root: Path, image_size: int, *, stop_requested: Callable[[], bool], is_main: bool) -> Dataset:
    """The images under `root`, of `image_size`, sorted by class name, then by path."""
    train, test = list_images(root, warn=is_main)
    class_names = tuple(train)
    files = decoded(
        [file for name in class_names for file in train[name]],
        [file for name in class_names for file in test[name]],
        image_size,
        stop_requested=stop_requested,
        is_main=is_main,
    )
    return Dataset(
        train=ImageSet(files.train, _labels([len(train[name]) for name in class_names])),
        test=ImageSet(files.test, _labels([len(test[name]) for name in class_names])),
        class_names=class_names,
        mean=files.mean,
        std=files.std,
    )


def _labels(class_counts: list[int]) -> torch.Tensor:
    return torch.arange(len(class_counts)).repeat_interleave(torch.tensor(class_counts))


Listing = dict[str, list[ImageFile]]  # the images of each class, sorted by path; classes sorted by name


def list_images(root: Path, *, warn: bool = True) -> tuple[Listing, Listing]:
    """The image files of each class in train and in test.

    Raises DataError with everything that is wrong. Files that are no images by their name are left out with a warning.
    """
    root = root.expanduser().absolute()
    _check_split_folders(root)
    left_out: list[str] = []
    train, test = (_list_split(root / split, left_out) for split in ("train", "test"))
    mistakes = _mistakes(root, train, test)
    if mistakes:
        raise DataError("\n".join([f"data.root: the image folders in {root} cannot be used:", *mistakes, LAYOUT]))
    if left_out and warn:
        logger.warning(
            "Left out, since the name does not end like an image's: %s. Move them away, or save images as PNG or JPEG.",
            _name_some(left_out),
        )
    return train, test


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
    elif missing == ["test"]:
        text += " Make test/ with a share of each class's images, which training must not see."
    raise DataError(text)


def _holds_image(folder: Path) -> bool:
    return any(_is_image(entry.name) for entry in _visible(folder))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _visible(folder: Path | str) -> list[os.DirEntry[str]]:
    """The folder's entries without hidden ones and those that file managers leave behind, by name."""
    try:
        with os.scandir(folder) as entries:
            kept = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in SYSTEM_FILES]
    except OSError as error:
        raise DataError(f"data.root: a folder cannot be read: {error}. Grant yourself access, or move it.") from error
    return sorted(kept, key=lambda entry: entry.name)


def _list_split(folder: Path, left_out: list[str]) -> Listing:
    """Also adds to `left_out` the files that are no images."""
    classes: Listing = {}
    for entry in _visible(folder):
        if entry.is_dir():
            images = []
            for file in _walk(entry.path, ancestors=()):
                if _is_image(file.name):
                    images.append(_image_file(file))
                else:
                    left_out.append(file.path)
            classes[entry.name] = sorted(images, key=lambda image: image.path)
        else:
            left_out.append(entry.path)
    return classes


def _walk(folder: str, ancestors: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    """All files below the folder; links are followed, except back to where the walk came from."""
    real = os.path.realpath(folder)
    if real in ancestors:
        return
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _walk(entry.path, (*ancestors, real))
        else:
            yield entry


def _image_file(entry: os.DirEntry[str]) -> ImageFile:
    try:
        status = entry.stat()
    except OSError as error:
        raise DataError(f"data.root: {error}. A link to a missing file? Delete it or mend it.") from error
    return ImageFile(entry.path, status.st_size, status.st_mtime_ns)


def _mistakes(root: Path, train: Listing, test: Listing) -> list[str]:
    """One line for each kind of mistake."""
    if not train:
        return [f"  {root / 'train'} has no class folders: sort its images into one folder for each class."]
    lines = []
    empty = [f"{split}/{name}" for split, of in (("train", train), ("test", test)) for name in of if not of[name]]
    if empty:
        lines.append(f"  {len(empty)} class folders without an image: {_name_some(empty)}. Fill or delete them.")
    missing = [name for name in train if name not in test]
    unknown = [name for name in test if name not in train]
    if missing:
        shown = [name + _did_you_mean(name, unknown) for name in missing]
        lines.append(
            f"  {len(missing)} classes of train are missing from test: {_name_some(shown)}. "
            "Put some of their images there, or delete the class."
        )
    if unknown:
        shown = [name + _did_you_mean(name, missing) for name in unknown]
        lines.append(
            f"  {len(unknown)} classes of test are missing from train, so they cannot be learned: {_name_some(shown)}. "
            "Rename or delete them."
        )
    return lines


def _did_you_mean(name: str, candidates: Sequence[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (the same as {by_lower[close[0]]!r} there?)" if close else ""


def _name_some(names: Sequence[str]) -> str:
    text = ", ".join(names[:NAMED_AT_MOST])
    return text if len(names) <= NAMED_AT_MOST else f"{text} and {len(names) - NAMED_AT_MOST} more"
