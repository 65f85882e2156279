"""The data set `image_folder`: pictures in class folders, in one folder for each split or directly in the root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trainlib.data.datasets.dataset import ImageSet
from trainlib.data.identity.names import PrefixedNames
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.pictures.files import PlainFiles
from trainlib.data.sources.folders.class_folders import SplitFolder, list_split, samples_of
from trainlib.data.sources.folders.folder_walk import named_junk, walk_folders
from trainlib.data.sources.folders.layout import DiskTree, absolute, choose_layout, older_layout, require_folder
from trainlib.data.sources.samples import Samples
from trainlib.data.storage.cache import load_decoded


def find_images(folder: str) -> tuple[list[str], SplitFolder]:
    """Return the paths of all image files in the folder and those below it, sorted, without hidden ones.

    Links that lead to no file are among them. They come with all that was found, of which some is left out.
    """
    found = walk_folders([folder])[0]
    paths = sorted([*(os.path.join(folder, name) for name in found.names), *found.broken])
    return paths, SplitFolder(Path(folder), {"": found}, found.left_out, found.junk)


def list_image_folder(root: Path, *, group: str | None = None, is_older: bool = False) -> Samples:
    """List the pictures under `root`, sorted by class name, then by path; nothing is decoded.

    group      "folder": the pictures of one folder below a class belong together
    is_older   True for a run that began before validation folders were used

    Raises DataError with everything that is wrong. A notice names the files that are left out.
    """
    root = absolute(root)
    require_folder(root)
    layout = (older_layout if is_older else choose_layout)(str(root), DiskTree(root))
    splits = {split: list_split(root / folder) for split, folder in layout.folders.items()}
    if layout.train:  # else the root is the training split's own folder
        splits["train"].junk.extend(named_junk(str(root)))

    def files(names: PrefixedNames) -> PlainFiles:
        return PlainFiles(PrefixedNames(names.names, [(f"{root}/{prefix}", count) for prefix, count in names.parts]))

    return samples_of("image_folder", str(root), layout, splits, files, group=group)


def load_class_folder(split: SplitFolder, class_names: Sequence[str], reader: PictureReader) -> ImageSet:
    """Load the images of a folder (see `list_class_folders`) for a model of these classes; some may be missing.

    The images are as `reader` makes them, sorted by class, then by path.

    Raises DataError with everything that is wrong.
    """
    files = PlainFiles([f"{split.folder}/{name}" for name in split.names(class_names)])
    stamps = split.stamps(class_names)
    decoded = load_decoded(
        files, stamps, len(files), reader, place=str(split.folder), stop_requested=lambda: False, is_main=False
    )
    return ImageSet(decoded.train, split.labels(class_names))
