"""The program of `launch pack`: class folders of pictures become tar shards with an index.

The same folder gives the same bytes everywhere: members are sorted by name, and have no times and no owners.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

from trainlib.data.pictures.files import read_picture
from trainlib.data.sources.folders.image_folder import list_image_folder
from trainlib.data.sources.folders.layout import absolute
from trainlib.data.sources.packed.index import INDEX_FILE, dump_index
from trainlib.errors import DataError, UserError
from trainlib.runs.files.durable import sync_directory
from trainlib.runs.terminal.printable import print_error, printable

SHARD_BYTES = 1_000_000_000
NAME = "shard-{:05}.tar"


def pack(folder: Path, out: Path, shard_bytes: int = SHARD_BYTES) -> int:
    """Write all pictures of class folders into shards in the new folder `out`; return the number of pictures.

    `out` gets its name once it is complete and on disk. What a killed packing left is written anew.

    Raises DataError for class folders that cannot be used, and where `out` exists.
    """
    folder, out = absolute(folder), absolute(out)
    if os.path.lexists(out):
        raise DataError(f"{out}: exists already; give the name of a folder that is to be made, or remove it")
    if out.is_relative_to(folder):
        raise DataError(f"{out}: lies in {folder}, whose pictures it would be counted among; choose a place outside")
    samples = list_image_folder(folder)
    for _, notice in samples.notices:
        print(f"note: {printable(notice)}", file=sys.stderr)
    names = samples.full_names()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shards = []
    try:
        for number, chosen in enumerate(_shards(names, samples.stamps.rows_N4[:, 0].tolist(), shard_bytes)):
            shard = partial / NAME.format(number)
            members = _write_shard(shard, folder, chosen)
            shards.append((shard.name, shard.stat().st_size, members))
        index = partial / INDEX_FILE
        index.write_text(dump_index(shards), encoding="utf-8")
        _sync(index)
        sync_directory(partial)
        partial.rename(out)
        sync_directory(out.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return len(names)


def _shards(names: Sequence[str], sizes: Sequence[int], shard_bytes: int) -> Iterator[list[str]]:
    """Yield the names of each shard, sorted over all of them; one holds a picture at least."""
    chosen: list[str] = []
    total = 0
    for name, size in sorted(zip(names, sizes, strict=True)):
        if chosen and total + size > shard_bytes:
            yield chosen
            chosen, total = [], 0
        chosen.append(name)
        total += size
    yield chosen


def _write_shard(shard: Path, folder: Path, names: Sequence[str]) -> list[tuple[str, int, int]]:
    """Write a tar of these files and flush it to disk; return name, offset and size of each member."""
    members = []
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            try:
                data = read_picture(str(folder / name))
            except (OSError, ValueError) as error:
                raise DataError(f"{folder / name}: cannot be packed: {error}") from error
            header = tarfile.TarInfo(name)  # mode 0644, no time, no owner
            header.size = len(data)
            tar.addfile(header, BytesIO(data))
            end = tar.fileobj.tell()
            members.append((name, end - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, len(data)))
    _sync(shard)
    return members


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack DIR into OUT, with shards of so many bytes; returns the exit code."""
    folder, out, shard_bytes = sys.argv[1:] if arguments is None else arguments
    try:
        count = pack(Path(folder), Path(out), int(shard_bytes))
    except UserError as error:
        print_error(error)
        return error.exit_code
    except OSError as error:  # a disk that is full
        print_error(error)
        return 1
    print(f"{count} pictures in {out}: train with data.name=archive data.root={out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
