"""Archives of folders, as Python's tarfile and zipfile write them."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

from trainlib.data.sources.packed.pack import pack


def tar(folder: Path, archive: Path, top: str = "", **options: object) -> Path:
    with tarfile.open(archive, "w", **options) as file:  # type: ignore[call-overload]
        file.add(folder, top or ".")
    return archive


def tar_of_each_split(folder: Path, out: Path) -> Path:
    for split in ("train", "val", "test"):
        tar(folder / split, out / f"{split}-000.tar")
    return out


def packed(folder: Path, out: Path) -> Path:
    pack(folder, out / "shards", 2_000)
    return out / "shards"


def zipped(folder: Path, archive: Path, top: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, os.path.join(top, path.relative_to(folder)))
    return archive
