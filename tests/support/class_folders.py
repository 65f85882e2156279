"""Small pictures on disk, for tests of the sources."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def save_picture(path: Path, size: int = 12) -> Path:
    """Save random pixels that depend on the file's name and its folder's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([*f"{path.parent.name}/{path.name}".encode()]).integers(0, 256, (size, size, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def save_classes(folder: Path, counts: dict[str, int], start: int = 0) -> Path:
    """Save so many pictures of each class: <class>/000.png and so on."""
    for name, count in counts.items():
        save_pictures(folder / name, (f"{i:03}.png" for i in range(start, start + count)))
    return folder


def save_pictures(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        save_picture(folder / name)
