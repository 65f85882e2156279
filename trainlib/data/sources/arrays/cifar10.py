"""CIFAR-10 (Krizhevsky, 2009), through torchvision: downloaded once, its checksums verified before it is read."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.data.datasets.images import InMemoryImages
from trainlib.data.identity.listing import Listing
from trainlib.errors import DataError
from trainlib.runs.files.locks import exclusive_lock

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
TIMEOUT_SECONDS = 30.0  # for an answer of the server


def load_cifar10(root: Path, *, stop_requested: Callable[[], bool]) -> Dataset:
    """Load CIFAR-10 from `root`, where one process downloads it if it is missing.

    50,000 training and 10,000 test images of 32 x 32 pixels.

    Raises DataError if they are neither there nor can be downloaded, StoppedError when asked to stop while waiting.
    """
    from torchvision.datasets import CIFAR10

    root = Path(os.path.expanduser(root)).absolute()  # which does not raise where there is no such user
    try:
        # Before any lock: a complete copy may lie where nothing can be written.
        with contextlib.suppress(RuntimeError):
            return _read(CIFAR10, root)
        root.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(root / ".cifar10.lock", stop_requested=stop_requested), _download_settings():
            CIFAR10(str(root), download=True)
            return _read(CIFAR10, root)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataError(
            f"data.name=cifar10: the images are not in {root} and could not be downloaded from {CIFAR10.url}: {error}. "
            f"Put {CIFAR10.filename} (MD5 {CIFAR10.tgz_md5}) into {root} yourself, delete "
            f"{root / CIFAR10.base_folder} if it is there, and run again; or use "
            "data.name=synthetic (needs no files) or data.name=image_folder (your own images)."
        ) from error


def _read(cifar10: Any, root: Path) -> Dataset:
    """Read the files through torchvision, which verifies their checksums before it unpickles anything.

    Raises RuntimeError for a missing or wrong file.
    """
    train, test = cifar10(str(root), train=True), cifar10(str(root), train=False)
    listing = Listing("cifar10", tuple(train.classes), {"train": len(train), "test": len(test)})
    return Dataset(_image_set(train), _image_set(test), listing.classes, MEAN, STD, listing)


def _image_set(split: Any) -> ImageSet:
    images_NCHW = torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(InMemoryImages(images_NCHW), torch.tensor(split.targets))


@contextlib.contextmanager
def _download_settings() -> Iterator[None]:
    """Set a timeout for servers that do not answer, and redirect torchvision's printing from stdout to stderr."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        socket.setdefaulttimeout(before)
