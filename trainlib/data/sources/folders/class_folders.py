"""Image files in class folders: what is a class, what is a picture, what is left out. All mistakes are told at once."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainlib.data.identity.names import PrefixedNames
from trainlib.data.identity.stamp import Stamps
from trainlib.data.pictures.files import PictureFiles
from trainlib.data.sources.folders.folder_walk import FoundFiles, named_junk, visible, walk_folders
from trainlib.data.sources.folders.layout import LAYOUT, Layout, name_some
from trainlib.data.sources.groups import folder_groups
from trainlib.data.sources.samples import SPLITS, Samples
from trainlib.errors import DataError


@dataclass(frozen=True)
class SplitFolder:
    """The files in one split's folder, such as root/train, or in a root that holds the class folders itself.

    classes     the images of each class, classes sorted by name; names are relative to the class folder
    left_out    files that belong to no class: not an image by their name, or outside of the class folders
    junk        hidden folders and pictures, and folders that file managers, archives and network drives have made
    """

    folder: Path
    classes: dict[str, FoundFiles]
    left_out: list[str]
    junk: list[str] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """Links whose target is missing."""
        return [path for found in self.classes.values() for path in found.broken]

    def names(self, class_names: Sequence[str]) -> list[str]:
        """Return the names of the files of these classes, below the split's folder; a class may have none."""
        there = [name for name in class_names if name in self.classes]
        return [*chain.from_iterable(map(f"{name}/".__add__, self.classes[name].names) for name in there)]

    def stamps(self, class_names: Sequence[str]) -> Stamps:
        """Return the stamp of each of `names`."""
        there = [self.classes[name].stamps.rows_N4 for name in class_names if name in self.classes]
        return Stamps(np.concatenate(there)) if there else Stamps.of([])

    def labels(self, class_names: Sequence[str]) -> Tensor:
        """Return the label of each of `names`, int64 [N]: the position of its class."""
        counts = [len(self.classes[name].names) if name in self.classes else 0 for name in class_names]
        return torch.arange(len(class_names)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))


def list_class_folders(folder: Path, class_names: Sequence[str]) -> SplitFolder:
    """List the image files in folder/<class>/ for a model of these classes, of which some may be missing.

    Raises DataError with everything that is wrong.
    """
    folder = Path(os.path.expanduser(folder)).absolute()
    if not folder.is_dir():
        raise DataError(f"{folder} {'is not a folder' if folder.exists() else 'does not exist'}")
    split = list_split(folder)
    mistakes = _unusable(split)
    unknown = [name for name in split.classes if name not in class_names]
    if unknown:
        shown = [name + _did_you_mean(name, class_names) for name in unknown]
        mistakes.append(
            f"Folders that are no class of the model ({len(unknown)}): {name_some(shown)}. Its classes are "
            f"{name_some(class_names)}."
        )
    if mistakes:
        raise DataError("\n".join([f"{folder} cannot be used:", *(f"  {mistake}" for mistake in mistakes)]))
    return split


def list_split(folder: Path) -> SplitFolder:
    """List what is in folder/<class>/. Raises DataError where a folder cannot be read."""
    entries = visible(str(folder))
    folders = [entry for entry in entries if entry.is_dir()]
    found = walk_folders([entry.path for entry in folders])
    left_out = [entry.path for entry in entries if not entry.is_dir()]
    left_out += [path for files in found for path in files.left_out]
    junk = named_junk(str(folder)) + [path for files in found for path in files.junk]
    classes = {entry.name: files for entry, files in zip(folders, found, strict=True)}
    return SplitFolder(folder, classes, left_out, junk)


def samples_of(
    source: str,
    place: str,
    layout: Layout,
    splits: Mapping[str, SplitFolder],
    files: Callable[[PrefixedNames], PictureFiles],
    *,
    group: str | None,
    has_labels: bool = False,
) -> Samples:
    """Return the samples of splits in class folders, on disk or in an archive.

    place        the root, for messages
    files        makes the pictures of these names below the root
    group        as for `folder_groups`
    has_labels   True where the classes are no folders but labels, beside which folders mean nothing

    Raises DataError with everything that is wrong. A notice names the files that are left out.
    """
    notices = _check(place, splits, has_labels)
    classes = tuple(splits["train"].classes)
    names = {split: listed.names(classes) for split, listed in splits.items()}
    every = [*chain.from_iterable(names.values())]
    prefixes = layout.prefixes
    parts = [(prefixes[split], len(of_split)) for split, of_split in names.items()]
    return Samples(
        source=source,
        classes=classes,
        counts={split: len(names.get(split, [])) for split in SPLITS},
        names=every,
        labels_N=torch.cat([listed.labels(classes) for listed in splits.values()]),
        stamps=Stamps(np.concatenate([listed.stamps(classes).rows_N4 for listed in splits.values()])),
        files=files(PrefixedNames(every, parts)),
        folders=prefixes,
        groups=folder_groups(every, group),
        notices=(*layout.notices, *notices),
    )


def _check(place: str, splits: Mapping[str, SplitFolder], has_labels: bool) -> list[tuple[int, str]]:
    """Raise DataError with all mistakes; return notices of what is left out, and of folders that look like classes."""
    mistakes = _mistakes(splits["train"], splits.get("val"), splits.get("test"))
    notices = left_out_notices(list(splits.values()))
    if mistakes:
        lines = [f"data.root: the image folders in {place} cannot be used:", *(f"  {mistake}" for mistake in mistakes)]
        lines += [f"  {sentence}" for level, sentence in notices if level == logging.WARNING]
        raise DataError("\n".join([*lines, LAYOUT]))
    repeated = None if has_labels else _repeated_folders(splits["train"])
    return [*notices, *([(logging.WARNING, repeated)] if repeated else [])]


def left_out_notices(splits: Sequence[SplitFolder]) -> list[tuple[int, str]]:
    """Return sentences that name what is left out of these splits, each with its level of logging."""
    left_out = [path for split in splits for path in split.left_out]
    junk = [path for split in splits for path in split.junk]
    notices = []
    if left_out:
        sentence = (
            f"Files left out, not images by their names or outside of the class folders ({len(left_out)}): "
            f"{name_some(left_out)}. Move them away; save images of another format as PNG or JPEG."
        )
        notices.append((logging.WARNING, sentence))
    if junk:
        notices.append((logging.INFO, junk_notice(junk)))
    return notices


def junk_notice(junk: Sequence[str]) -> str:
    """Return the sentence that names what is hidden, or was made by file managers, archives and drives."""
    return f"Left out, hidden or made by file managers, archives or drives ({len(junk)}): {name_some(junk)}."


def _mistakes(train: SplitFolder, val: SplitFolder | None, test: SplitFolder | None) -> list[str]:
    """Return one sentence for each kind of mistake, with the fix."""
    if not train.classes:
        return _unusable(train)
    others = [split for split in (val, test) if split is not None]
    found = _unusable(train, *others)
    if len(train.classes) == 1:
        found.append(_one_class(train))
    for split in others:
        name = split.folder.name
        missing = [known for known in train.classes if known not in split.classes] if split is test else []
        unknown = [other for other in split.classes if other not in train.classes]
        if missing:
            shown = [known + _did_you_mean(known, unknown) for known in missing]
            found.append(
                f"Classes of train that are missing from {name} ({len(missing)}): {name_some(shown)}. "
                "Put some of their images there, or delete them."
            )
        if unknown:
            shown = [other + _did_you_mean(other, missing or [*train.classes]) for other in unknown]
            found.append(
                f"Classes of {name} that are missing from train ({len(unknown)}): {name_some(shown)}. "
                "Rename or delete them."
            )
    return found


def _one_class(train: SplitFolder) -> str:
    """Return the sentence that a single class is not enough, with what it probably comes from."""
    name = next(iter(train.classes))
    text = f"{train.folder} has one class folder only, {name!r}, and needs two or more: there is nothing to tell apart."
    inner = _inner_folders(train, name)
    if len(inner) > 1:
        text += (
            f" It holds the folders {name_some(inner)}. If these are the classes, there is one level of folders too "
            f"many: move them up into {train.folder}, and those of test likewise."
        )
    return text


def _inner_folders(split: SplitFolder, name: str) -> list[str]:
    """Return the folders in a class folder that its images are in; none if some images are not in any."""
    found = set()
    for file in split.classes[name].names:
        folder, is_inside, _ = file.partition("/")
        if not is_inside:
            return []
        found.add(folder)
    return sorted(found)


def _repeated_folders(train: SplitFolder) -> str | None:
    """Return a warning if every class folder holds the same folders, which then are more likely the classes."""
    names = list(train.classes)
    inner = _inner_folders(train, names[0])
    if len(inner) < 2 or any(_inner_folders(train, name) != inner for name in names[1:]):
        return None
    return (
        f"every class folder in {train.folder} ({name_some(names)}) holds the same folders, "
        f"{name_some(inner)}: if these are the classes, there is one level of folders too many"
    )


def _unusable(*splits: SplitFolder) -> list[str]:
    """Return the mistakes that do not depend on the other split: no classes, broken links, empty classes."""
    if not any(split.classes for split in splits):
        return [f"{splits[0].folder} has no class folders: sort its images into one folder for each class."]
    found = []
    if broken := [path for split in splits for path in split.broken]:
        found.append(f"Links that lead to no file ({len(broken)}): {name_some(broken)}. Delete or mend them.")
    classes = [(f"{split.folder.name}/{name}", files) for split in splits for name, files in split.classes.items()]
    empty = [name for name, files in classes if not files.names]
    if empty:
        found.append(f"Class folders without an image ({len(empty)}): {name_some(empty)}. Fill or delete them.")
    return found


def _did_you_mean(name: str, candidates: Sequence[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (the same as {by_lower[close[0]]!r} there?)" if close else ""
