"""The data set `image_folder`: images in root/train/<class>/ and root/test/<class>/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trainlib.data.dataset import Dataset, ImageSet
from trainlib.data.identity.listing import Listing, SampleFile, identities
from trainlib.data.sources.class_folders import list_class_folders, list_images
from trainlib.data.storage.cache import load_decoded


def load_image_folder(
    root: Path, image_size: int, *, verify: bool = False, stop_requested: Callable[[], bool], is_main: bool
) -> Dataset:
    """Load the images under `root`, square with `image_size` pixels a side, sorted by class name, then by path.

    verify   read every file again, also where the file system says that nothing has changed

    Raises DataError with everything that is wrong, StoppedError when asked to stop.
    """
    train, test = list_images(root, warn=is_main)
    class_names = tuple(train.classes)
    train_files, test_files = train.files(class_names), test.files(class_names)
    decoded = load_decoded(
        train_files, test_files, image_size, verify=verify, stop_requested=stop_requested, is_main=is_main
    )
    train_labels, test_labels = train.labels(class_names), test.labels(class_names)
    splits = ((train, train_files), (test, test_files))
    return Dataset(
        train=ImageSet(decoded.train, train_labels, identities(train.names(train_files))),
        test=ImageSet(decoded.test, test_labels),
        class_names=class_names,
        mean=decoded.mean,
        std=decoded.std,
        listing=Listing(
            "image_folder",
            class_names,
            {"train": len(train_files), "test": len(test_files)},
            tuple(
                SampleFile(name, label, file.stamp, sha256)
                for name, label, file, sha256 in zip(
                    [f"{split.folder.name}/{name}" for split, files in splits for name in split.names(files)],
                    [*train_labels.tolist(), *test_labels.tolist()],
                    [*train_files, *test_files],
                    decoded.hashes,
                    strict=True,
                )
            ),
        ),
    )


def load_class_folder(folder: Path, class_names: Sequence[str], image_size: int) -> ImageSet:
    """Load the images in folder/<class>/ for a model of these classes, of which some may be missing.

    The images are square with `image_size` pixels a side, sorted by class, then by path.

    Raises DataError with everything that is wrong.
    """
    split = list_class_folders(folder, class_names)
    images = load_decoded(split.files(class_names), [], image_size, stop_requested=lambda: False, is_main=False).train
    return ImageSet(images, split.labels(class_names))
