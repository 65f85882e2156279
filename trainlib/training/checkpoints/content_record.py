"""The hashes of streamed files, kept in the run directory from one attempt to the next."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from trainlib.data.datasets.dataset import Dataset
from trainlib.data.datasets.images import StreamedImages
from trainlib.data.identity.content import FileContent
from trainlib.data.identity.sample_files import SampleFiles
from trainlib.runs.directory import RunDirectory
from trainlib.training.checkpoints.provenance import CONTENT_FILES, read_listing
from trainlib.training.hooks import Hook


class ContentHook(Hook):
    """Writes, before each checkpoint, the hashes of the files that this rank has read for the first time."""

    def __init__(self, run: RunDirectory, dataset: Dataset, rank: int):
        self._path = run.path / CONTENT_FILES.replace("*", str(rank))
        self._splits = list(_streamed(dataset))

    def on_checkpoint(self) -> None:
        """Append to this rank's file, and flush it to disk."""
        new = [(files[i].name, sha256) for content, files in self._splits for i, sha256 in content.take_new()]
        if new:
            with self._path.open("ab") as file:
                file.write("".join(json.dumps({"file": name, "sha256": sha}) + "\n" for name, sha in new).encode())
                file.flush()
                os.fsync(file.fileno())


def learn_content(run: RunDirectory, dataset: Dataset) -> None:
    """Tell the images that are streamed what their bytes were in earlier attempts at the run."""
    splits = list(_streamed(dataset))
    if not splits:
        return
    recorded = read_listing(run)
    known = recorded.files.known() if recorded is not None else {}
    for content, files in splits:
        content.learn((i, known[file.name]) for i, file in enumerate(files) if file.name in known)


def forget_content(run: RunDirectory) -> None:
    """Remove what earlier attempts read: the run begins anew."""
    for path in run.path.glob(CONTENT_FILES):
        path.unlink()


def _streamed(dataset: Dataset) -> Iterator[tuple[FileContent, SampleFiles]]:
    files, num_train = dataset.listing.files, len(dataset.train.labels_N)
    for image_set, of_split in ((dataset.train, files[:num_train]), (dataset.test, files[num_train:])):
        if isinstance(image_set.images, StreamedImages) and image_set.images.content is not None and of_split:
            yield image_set.images.content, of_split
