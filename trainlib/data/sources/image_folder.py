"""The data set `image_folder`: pictures in class folders, in one folder for each split or directly in the root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trainlib.data.dataset import ImageSet
from trainlib.data.identity.names import PrefixedNames
from trainlib.data.pictures.files import PlainFiles
from trainlib.data.pictures.reader import PictureReader
from trainlib.data.sources.class_folders import SplitFolder, list_class_folders, list_split, samples_of
from trainlib.data.sources.folder_walk import walk_folders
from trainlib.data.sources.layout import DiskTree, absolute, choose_layout, require_folder
from trainlib.data.sources.samples import Samples
from trainlib.data.storage.cache import load_decoded


def find_images(folder: str) -> list[str]:
    """Return the paths of all image files in the folder and those below it, sorted, without hidden ones."""
    return sorted(os.path.join(folder, name) for name in walk_folders([folder])[0].names)


def list_image_folder(root: Path, *, group: str | None = None) -> Samples:
    """List the pictures under `root`, sorted by class name, then by path; nothing is decoded.

    group   "folder": the pictures of one folder below a class belong together

    Raises DataError with everything that is wrong. A notice names the files that are left out.
    """
    root = absolute(root)
    require_folder(root)
    layout = choose_layout(str(root), DiskTree(root))
    splits = {split: list_split(root / folder) for split, folder in layout.folders.items()}

    def files(names: PrefixedNames) -> PlainFiles:
        return PlainFiles(PrefixedNames(names.names, [(f"{root}/{prefix}", count) for prefix, count in names.parts]))

    return samples_of("image_folder", str(root), layout, splits, files, group=group)


def load_class_folder(folder: Path, class_names: Sequence[str], reader: PictureReader) -> ImageSet:
    """Load the images in folder/<class>/ for a model of these classes, of which some may be missing.

    The images are as `reader` makes them, sorted by class, then by path.

    Raises DataError with everything that is wrong.
    """
    split: SplitFolder = list_class_folders(folder, class_names)
    files = PlainFiles([f"{split.folder}/{name}" for name in split.names(class_names)])
    stamps = split.stamps(class_names)
    decoded = load_decoded(
        files, stamps, len(files), reader, place=str(split.folder), stop_requested=lambda: False, is_main=False
    )
    return ImageSet(decoded.train, split.labels(class_names))
