"""The facts about a data set as plain values: what `launch data --json` prints, and its page is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainlib.data.survey.duplicates import exact_groups, near_groups
from trainlib.data.survey.inspection import name_some
from trainlib.data.survey.looking import Looks
from trainlib.data.targets import class_names_of, class_sizes

SPLITS = ("train", "val", "test")
MOST_SIZES = 10
FEW_VAL = 10
LARGE_IMBALANCE = 10


@dataclass(frozen=True)
class Surveyed:
    """The samples of a data set, one row each.

    names      of each sample, below the data's root; its index where it is no file
    labels_N   int64 [N], or of sets of classes bool [N, C]
    splits_N   int64: the number of its split in SPLITS, as a run with this configuration has it
    """

    source: str
    classes: Sequence[str]
    names: Sequence[str]
    labels_N: np.ndarray
    splits_N: np.ndarray

    def entry(self, index: int) -> dict[str, Any]:
        """Return how a sample is named in the facts."""
        split = SPLITS[int(self.splits_N[index])]
        [names] = class_names_of(torch.from_numpy(self.labels_N[index : index + 1]), self.classes)
        return {"index": index, "name": self.names[index], "split": split, "class": ", ".join(names)}

    def is_of(self, label: int) -> np.ndarray:
        """Return whether each sample is of a class: bool [N]."""
        return self.labels_N[:, label] if self.labels_N.ndim == 2 else self.labels_N == label


def facts_of(surveyed: Surveyed, looks: Looks) -> dict[str, Any]:
    """Return all facts: counts, sizes, formats, damage, duplicates, near duplicates, and what to look at."""
    exact = [_group(surveyed, group) for group in exact_groups(looks.content_N, looks.whole())]
    near = None
    if looks.shows_N is not None:
        near = [_group(surveyed, group) for group in near_groups(looks.shows_N, looks.content_N, looks.whole())]
        near.sort(key=_importance)
    exact.sort(key=_importance)
    facts: dict[str, Any] = {
        "source": surveyed.source,
        "count": len(surveyed.names),
        "splits": _counts(surveyed.splits_N, SPLITS),
        "classes": _classes(surveyed),
        "formats": dict(Counter(form for form, _ in looks.kinds_N if form).most_common()),
        "modes": dict(Counter(mode for _, mode in looks.kinds_N if mode).most_common()),
        "sizes": _sizes(looks),
        "damaged": [surveyed.entry(index) | {"reason": reason} for index, reason in looks.damaged.items()],
        "duplicates": exact,
        "near_duplicates": near,
    }
    return facts | {"warnings": _warnings(facts)}


def _counts(numbers_N: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    return dict(zip(names, np.bincount(numbers_N, minlength=len(names)).tolist(), strict=True))


def _classes(surveyed: Surveyed) -> list[dict[str, Any]]:
    """Return the samples of each class by split."""
    labels_N, num_classes = torch.from_numpy(surveyed.labels_N), len(surveyed.classes)
    in_split = [torch.from_numpy(surveyed.splits_N == split) for split in range(len(SPLITS))]
    rows = torch.stack([class_sizes(labels_N[is_in_N], num_classes) for is_in_N in in_split], dim=1).tolist()
    return [
        {"name": name} | dict(zip(SPLITS, row, strict=True)) for name, row in zip(surveyed.classes, rows, strict=True)
    ]


def _sizes(looks: Looks) -> dict[str, Any]:
    """Return the sizes in pixels: smallest, median and largest by area, and the most frequent."""
    sizes_N2 = looks.sizes_N2[(looks.sizes_N2 > 0).all(axis=1)]
    if not len(sizes_N2):
        return {}
    by_area = sizes_N2[np.argsort(sizes_N2.astype(np.int64).prod(axis=1), kind="stable")].tolist()
    frequent = Counter(map(tuple, by_area))
    return {
        "smallest": by_area[0],
        "median": by_area[len(by_area) // 2],
        "largest": by_area[-1],
        "different": len(frequent),
        "frequent": [{"size": list(size), "count": count} for size, count in frequent.most_common(MOST_SIZES)],
    }


def _group(surveyed: Surveyed, group: Sequence[int]) -> dict[str, Any]:
    """Return a group of duplicates: its samples, the splits and the classes that it spans."""
    samples = [surveyed.entry(index) for index in group]
    splits = [split for split in SPLITS if any(sample["split"] == split for sample in samples)]
    return {"splits": splits, "classes": sorted({sample["class"] for sample in samples}), "samples": samples}


def _importance(group: Mapping[str, Any]) -> tuple[int, int]:
    """Return the sort key of a group: leaks into the test first, then into validation, then between classes."""
    leak = 0 if is_leak(group) and "test" in group["splits"] else 1 if is_leak(group) else 2
    return leak, 0 if len(group["classes"]) > 1 else 1


def is_leak(group: Mapping[str, Any]) -> bool:
    """Return True if a group of duplicates is on two sides of a split."""
    return len(group["splits"]) > 1


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    """Return what a person should look at, a sentence each."""
    found = []
    if facts["damaged"]:
        found.append(f"{_pictures(facts['damaged'])} damaged: training refuses damaged ones; mend or remove them")
    leaks = [group for group in facts["duplicates"] if is_leak(group)]
    if leaks:
        found.append(
            f"{_pictures(leaks)} in more than one split, byte by byte: validation or test promise too much; "
            "keep each in one split, or bind them together with data.group"
        )
    contrary = [group for group in facts["duplicates"] if len(group["classes"]) > 1]
    if contrary:
        found.append(f"{_pictures(contrary)} in more than one class, byte by byte: at most one label is right")
    if near := [group for group in facts["near_duplicates"] or () if is_leak(group)]:
        found.append(f"pictures that look the same are in more than one split, {len(near)} times: look at them")
    sizes = [row["train"] for row in facts["classes"]]
    if min(sizes) * LARGE_IMBALANCE < max(sizes):
        largest, smallest = (facts["classes"][sizes.index(size)]["name"] for size in (max(sizes), min(sizes)))
        found.append(
            f"classes differ in size: {max(sizes)} training pictures of {largest!r}, {min(sizes)} of {smallest!r}: "
            "consider data.balance or loss.weight: balanced, and val/macro_f1"
        )
    if facts["splits"]["val"] and (few := [row["name"] for row in facts["classes"] if row["val"] < FEW_VAL]):
        found.append(f"fewer than {FEW_VAL} validation pictures: {name_some(few)}; their figures say little")
    return found


def _pictures(found: Sequence[Any]) -> str:
    return "1 picture is" if len(found) == 1 else f"{len(found)} pictures are"
