"""The data set `archive`: a tar or zip of class folders, a folder of such shards, or shards in webdataset's form."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from trainlib.data.identity.stamp import Stamp, Stamps
from trainlib.data.sources.folders.class_folders import SplitFolder, samples_of
from trainlib.data.sources.folders.folder_walk import (
    FoundFiles,
    folders_above,
    is_hidden_picture,
    is_image,
    is_junk,
    visible,
)
from trainlib.data.sources.folders.layout import SPLIT_FOLDERS, absolute, choose_layout, name_some
from trainlib.data.sources.packed.index import read_index
from trainlib.data.sources.packed.members import Archive, ArchiveFiles, MemberPlace, open_archive
from trainlib.data.sources.packed.tar import list_tar
from trainlib.data.sources.packed.webdataset import is_webdataset, label_folders
from trainlib.data.sources.packed.zip import list_zip
from trainlib.data.sources.samples import Samples
from trainlib.errors import DataError

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"7z\xbc\xaf": "7z"}
ENDINGS = (".tar", ".zip", ".tgz", ".tbz", ".txz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_OF_SPLIT = re.compile(rf"({'|'.join(SPLIT_FOLDERS)})([-_./].*)")


def list_archive(root: Path, *, group: str | None = None) -> Samples:
    """List the pictures in an archive or a folder of archives, in the order of `image_folder`; none is unpacked.

    group   "folder": the pictures of one folder below a class belong together

    Raises DataError with everything that is wrong. A notice names the members that are left out.
    """
    root = absolute(root)
    archives = _archives(root)
    places = _named(root, archives)
    has_labels = is_webdataset(archives, places)
    if has_labels:
        places = label_folders(archives, places)
    tree = _MemberTree(places)
    layout = choose_layout(str(root), tree)
    prefixes = layout.prefixes
    splits = {split: _split(root, archives, places, prefix, has_labels) for split, prefix in prefixes.items()}
    splits["train"].left_out.extend(
        f"{archive.path}:{name} (a link or a device)" for archive in archives for name in archive.left_out
    )
    splits["train"].junk.extend(sorted({*filter(None, map(_named_junk, places))}))

    def files(names: Sequence[str]) -> ArchiveFiles:
        return ArchiveFiles(archives, (places[name] for name in names))

    return samples_of("archive", str(root), layout, splits, files, group=group, has_labels=has_labels)


def _archives(root: Path) -> list[Archive]:
    """List the members of the archive, or of all archives in the folder and its folders."""
    if root.is_file():
        return [_list(root)]
    if not root.is_dir():
        raise DataError(f"data.root: {root} does not exist. data.name=archive needs a .tar, a .zip or a folder of them")
    paths = [path for path in _files(str(root), folders_above(str(root))) if path.lower().endswith(ENDINGS)]
    if not paths:
        raise DataError(
            f"data.root: {root} holds no .tar or .zip. For class folders of pictures set data.name=image_folder; "
            "`launch pack` makes shards of them"
        )
    return read_index(root, [Path(path) for path in paths]) or [_list(Path(path)) for path in paths]


def _files(folder: str, ancestors: tuple[tuple[int, int], ...]) -> list[str]:
    """Return all files below a folder; links are followed, but not in circles."""
    status = os.stat(folder)
    itself = (status.st_dev, status.st_ino)
    if itself in ancestors:
        return []
    found = []
    for entry in visible(folder):
        found += _files(entry.path, (*ancestors, itself)) if entry.is_dir() else [entry.path]
    return sorted(found)


def _list(path: Path) -> Archive:
    """List the members of an archive of either kind, which its first bytes tell."""
    try:
        descriptor = open_archive(path)
        try:
            start = os.pread(descriptor, 8, 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"data.root: {path} cannot be read: {error}") from error
    if start.startswith((b"PK\3\4", b"PK\5\6")):
        return list_zip(path)
    for mark, name in COMPRESSED.items():
        if start.startswith(mark):
            raise DataError(
                f"data.root: {path} is compressed as a whole ({name}), so that no picture in it can be read by itself: "
                "unpack it, and set data.name=image_folder or make shards of the folder with `launch pack`; pictures "
                "are compressed already"
            )
    return list_tar(path)


def _named(root: Path, archives: Sequence[Archive]) -> dict[str, MemberPlace]:
    """Return all members by their names in the whole data set: with the split that their archive is named after.

    A folder that everything is in is left out of the names, as in a zip of a folder. Raises DataError for a name that
    is in two archives.
    """
    splits = _splits_of(root, [os.path.relpath(archive.path, root) for archive in archives]) if root.is_dir() else []
    if splits:
        by_split: dict[str, list[int]] = {}
        for number, split in enumerate(splits):
            by_split.setdefault(split, []).append(number)
        return {
            f"{split}/{name}": place
            for split, numbers in by_split.items()
            for name, place in _without_top(archives, _joined(archives, numbers), split).items()
        }
    return _without_top(archives, _joined(archives, range(len(archives))), "")


def _splits_of(root: Path, names: Sequence[str]) -> list[str]:
    """Return the split that each shard's path is named after, as in train-0001.tar or val/0001.tar; empty for none.

    Raises DataError where some are named after several splits, and others after none.
    """
    begins = [found[1] if (found := _OF_SPLIT.match(name)) else "" for name in names]
    if all(begins):
        return begins
    splits = [split or _word_in(name) for split, name in zip(begins, names, strict=True)]
    if len({*splits} - {""}) < 2:
        return []
    if others := [name for split, name in zip(splits, names, strict=True) if not split]:
        raise DataError(
            f"data.root: {root} holds archives that are named after splits, and others that are not: "
            f"{name_some(others)}. Name each after its split, as in train-0000.tar, or move them away"
        )
    return splits


def _word_in(name: str) -> str:
    """Return the one split that is a word of a shard's file name, as in imagenet-train-0001.tar; else ""."""
    found = {*re.split("[-_.]", os.path.basename(name))} & {*SPLIT_FOLDERS}
    return found.pop() if len(found) == 1 else ""


def _joined(archives: Sequence[Archive], numbers: Sequence[int]) -> dict[str, MemberPlace]:
    """Return the members of these archives by name."""
    places: dict[str, MemberPlace] = {}
    repeated: list[str] = []
    for number in numbers:
        members = archives[number].members
        if twice := places.keys() & members.keys():
            repeated = sorted(twice)
            break
        places |= {name: (number, member) for name, member in members.items()}
    if not repeated:
        return places
    # Keys of webdataset's form may be counted anew in each shard: their archive's name tells them apart.
    places = {
        f"{prefix}/{name}": (number, member)
        for number, prefix in zip(numbers, _told_apart([archives[number].path for number in numbers]), strict=True)
        for name, member in archives[number].members.items()
    }
    if not is_webdataset(archives, places):
        raise DataError(f"data.root: {repeated[0]} is in {archives[0].path} and in another archive: remove one")
    return places


def _told_apart(paths: Sequence[str]) -> list[str]:
    """Return the names of archives without their endings; where some are the same, with the folders they lie in."""
    stems = [Path(path).stem for path in paths]
    if len({*stems}) == len(stems):
        return stems
    above = os.path.commonpath(paths)
    return [os.path.splitext(os.path.relpath(path, above))[0] for path in paths]


def _without_top(archives: Sequence[Archive], places: dict[str, MemberPlace], split: str) -> dict[str, MemberPlace]:
    """Leave out of the names the one folder that everything is in, but not one that is a split."""
    if is_webdataset(archives, places):
        return places
    while True:
        tops = {name.partition("/")[0] if "/" in name else "" for name in places if not _is_junk(name)}
        top = next(iter(tops), "")
        if len(tops) != 1 or not top or (top in SPLIT_FOLDERS and top != split):
            return places
        if not any(name.count("/") > 1 for name in places):
            return places  # it holds pictures: a class
        places = {name[len(top) + 1 :]: place for name, place in places.items() if name.startswith(f"{top}/")}


def _is_junk(name: str) -> bool:
    *folders, file = name.split("/")
    return is_junk(file, is_folder=False) or any(is_junk(folder, is_folder=True) for folder in folders)


def _named_junk(name: str) -> str | None:
    """Return the folder that keeps a member out of the data set, or the name of a hidden picture."""
    *folders, file = name.split("/")
    for depth, folder in enumerate(folders):
        if is_junk(folder, is_folder=True):
            return "/".join(folders[: depth + 1])
    return name if is_hidden_picture(file) else None


class _MemberTree:
    """The folders of members' names; see `layout.Tree`."""

    def __init__(self, places: dict[str, MemberPlace]):
        self._folders: dict[str, set[str]] = {}
        self._pictures: set[str] = set()
        for name in places:
            if _is_junk(name):
                continue
            folder, _, file = name.rpartition("/")
            if is_image(file):
                self._pictures.add(folder)
            while folder and folder not in self._folders:
                self._folders[folder] = set()
                folder = folder.rpartition("/")[0]
        for folder in list(self._folders):
            parent, _, name = folder.rpartition("/")
            self._folders.setdefault(parent, set()).add(name)

    def folders(self, path: str) -> list[str]:
        """Return the names of the folders in a folder, sorted."""
        return sorted(self._folders.get(path, ()))

    def has_pictures(self, path: str) -> bool:
        """Return True if a picture lies directly in the folder."""
        return path in self._pictures


def _split(
    root: Path, archives: Sequence[Archive], places: dict[str, MemberPlace], prefix: str, is_numbered: bool
) -> SplitFolder:
    """Return the class folders below a prefix of the members' names.

    is_numbered   classes whose names are numbers are in the order of these
    """
    names: dict[str, list[str]] = {}
    left_out = []
    for name in places:
        if not name.startswith(prefix) or _is_junk(name):
            continue
        class_name, is_inside, file = name[len(prefix) :].partition("/")
        if is_inside and is_image(file):
            names.setdefault(class_name, []).append(file)
        else:
            left_out.append(f"{archives[places[name][0]].path}:{name}")
    classes = {}
    in_order = sorted(names, key=int) if is_numbered and all(map(str.isdecimal, names)) else sorted(names)
    for class_name in in_order:
        files = sorted(names[class_name])
        stamps = (_stamp(archives, places[f"{prefix}{class_name}/{file}"]) for file in files)
        classes[class_name] = FoundFiles(files, Stamps.of(stamps))
    return SplitFolder(root / prefix, classes, sorted(left_out))


def _stamp(archives: Sequence[Archive], place: MemberPlace) -> Stamp:
    """Return the stamp of a member: its own size, and what the file system says of its archive."""
    number, member = place
    return archives[number].stamp._replace(size=member.size)
