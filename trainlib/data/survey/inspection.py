"""A look at decoded data before training: pictures or classes from which nothing can be learned, and odd class orders.

At most 1,000 evenly spaced training pictures are looked at, so that a start takes no longer for a large data set.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.data.datasets.images import InMemoryImages
from trainlib.data.targets import are_sets, class_sizes
from trainlib.errors import DataError

MAX_PICTURES = 1_000
AT_ONCE = 50  # pictures in memory
DARKEST_RANGE = 32  # of 256 values; the upper 8 of 16 bits leave 16 to a picture of 12 bits
NAMED_AT_MOST = 10
FEW_FOR_VALIDATION = 10  # images of a class: one of them is a tenth of its accuracy
FLOOR = 1 / 255  # the standard deviation that `channel_statistics` gives to a channel without variance

EXPORT = (
    "Transparency is dropped, and in a run that began before data.decode was there, the upper 8 of 16 bits a channel "
    "are kept, so that values of 8 or 12 bits become black or nearly so: export the pictures as RGB with 8 bits"
)


def inspect(dataset: Dataset, train_ids: Tensor, val_ids: Tensor) -> list[str]:
    """Return warnings about the data that a run trains and validates on, one sentence or two each.

    train_ids, val_ids   the samples of the training set that are trained on and held out, int64

    Raises DataError if nothing can be learned: all samples are of one class, or all pictures are the same.
    """
    warnings = _check_classes(dataset, train_ids, val_ids)
    warnings += _check_pictures(dataset, train_ids)
    return warnings


def summary(dataset: Dataset, train_ids: Tensor, val_ids: Tensor) -> str:
    """Return one line on what was found: the images of each split, the classes, and the smallest and largest of them.

    train_ids, val_ids   as for `inspect`
    """
    names = dataset.class_names
    counts = class_sizes(dataset.train.labels_N[train_ids], len(names))
    least, most = int(counts.argmin()), int(counts.argmax())
    sizes = f"{int(counts[least])} ({names[least]}) to {int(counts[most])} ({names[most]}) training images"
    if counts[least] == counts[most]:
        sizes = f"{int(counts[least])} training images each"
    groups_N = dataset.train.groups_N
    groups = "" if groups_N is None else f"; {len(groups_N.unique())} groups, which no split cuts"
    return (
        f"data: {len(train_ids)} images to train on, {len(val_ids)} for validation, {len(dataset.test.labels_N)} for "
        f"the test; {len(names)} classes, of {sizes}{groups}"
    )


def text_order_notice(class_names: Sequence[str]) -> str | None:
    """Return the notice that names like 1, 2, 10 are sorted as text, not by their numbers; None for other names."""
    by_number = sorted(class_names, key=_natural_key)
    if list(class_names) == by_number or list(class_names) != sorted(class_names):
        return None
    shown = ", ".join(map(repr, class_names[:NAMED_AT_MOST])) + (", ..." if len(class_names) > NAMED_AT_MOST else "")
    width = max(len(digits) for name in class_names for digits in re.findall(r"\d+", name))
    renamed = [re.sub(r"\d+", lambda digits: digits[0].zfill(width), name) for name in by_number[:3]]
    return (
        f"the classes are sorted as text, not by their numbers: {shown}. Lists by position, such as loss.weight, "
        f"follow this order; folders named with as many digits each ({', '.join(map(repr, renamed))}, ...) have the "
        "order of the numbers"
    )


def missing_classes(labels_N: Tensor, class_names: Sequence[str]) -> list[str]:
    """Return the names of the classes that no label names, in the order of the classes."""
    counts = class_sizes(labels_N, len(class_names)).tolist()
    return [name for name, count in zip(class_names, counts, strict=True) if not count]


def name_some(names: Sequence[str]) -> str:
    """Return the names, quoted; of many, the first ten and the number of the others."""
    text = ", ".join(map(repr, names[:NAMED_AT_MOST]))
    return text if len(names) <= NAMED_AT_MOST else f"{text} and {len(names) - NAMED_AT_MOST} more"


def _natural_key(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _check_classes(dataset: Dataset, train_ids: Tensor, val_ids: Tensor) -> list[str]:
    names, labels_N = dataset.class_names, dataset.train.labels_N
    untrained = missing_classes(labels_N[train_ids], names)
    if are_sets(labels_N):
        _check_sets(labels_N[train_ids])
    elif len(names) - len(untrained) < 2:
        only = next((name for name in names if name not in untrained), names[0])
        raise DataError(
            f"data: all {len(train_ids)} training samples are of one class, {only!r}, must be of two or more: there is "
            "nothing to tell apart. Add pictures of other classes, or raise data.limit"
        )
    warnings = _alike(names)
    if untrained:
        warnings.append(f"no training sample is of the class(es) {name_some(untrained)}: they cannot be learned")
    if len(val_ids) and (unseen := missing_classes(labels_N[val_ids], names)):
        warnings.append(
            f"the validation split has no sample of {len(unseen)} of the {len(names)} classes ({name_some(unseen)}): "
            f"{'val/map counts them as 0' if are_sets(labels_N) else 'val/loss and val/accuracy say nothing of them'}. "
            "A larger data.val_fraction holds out more"
        )
    warnings += _small_classes(labels_N[val_ids], names)
    if untested := missing_classes(dataset.test.labels_N, names):
        warnings.append(
            f"the test split has no sample of {len(untested)} of the {len(names)} classes ({name_some(untested)}): "
            + ("test/map counts them as 0" if are_sets(labels_N) else "the test accuracy says nothing of them")
        )
    return warnings


def _check_sets(labels_NC: Tensor) -> None:
    """Raise DataError where each class is either in all of these sets or in none of them."""
    if not (labels_NC.any(dim=0) & ~labels_NC.all(dim=0)).any():
        raise DataError(
            f"data: all {len(labels_NC)} training samples have the same labels: there is nothing to tell apart. Add "
            "pictures with others, or raise data.limit"
        )


def _alike(names: Sequence[str]) -> list[str]:
    """Return a warning where classes differ only in case, spaces, or the way in which their letters are encoded."""
    by_form: dict[str, list[str]] = {}
    for name in names:
        form = " ".join(re.split(r"[\s_-]+", unicodedata.normalize("NFKC", name).casefold().strip()))
        by_form.setdefault(form, []).append(name)
    pairs = [" and ".join(map(repr, same)) for same in by_form.values() if len(same) > 1]
    if not pairs:
        return []
    shown = "; ".join(pairs[:NAMED_AT_MOST]) + ("; ..." if len(pairs) > NAMED_AT_MOST else "")
    return [f"classes that may be one, as they are written alike: {shown}. Join them, or give them other names"]


def _small_classes(labels_N: Tensor, names: Sequence[str]) -> list[str]:
    """Return a warning where the validation split has a few images of a class: its accuracy moves in large steps."""
    counts = class_sizes(labels_N, len(names)).tolist()
    few = [name for name, count in zip(names, counts, strict=True) if 0 < count < FEW_FOR_VALIDATION]
    if not few:
        return []
    return [
        f"the validation split has fewer than {FEW_FOR_VALIDATION} images of {len(few)} of the {len(names)} classes "
        f"({name_some(few)}): what it says of them is mostly chance. A larger data.val_fraction holds out more"
    ]


def _check_pictures(dataset: Dataset, train_ids: Tensor) -> list[str]:
    count = min(len(train_ids), MAX_PICTURES)
    chosen = train_ids[torch.arange(count) * len(train_ids) // max(count, 1)]
    suspicious = min(dataset.std) <= FLOOR
    if len(chosen) < 2 or not (isinstance(dataset.train.images, InMemoryImages) or suspicious):
        return []  # pictures that are decoded anew for each batch are looked at only if their statistics are odd
    same, low_NC, high_NC = _ranges(dataset.train, chosen)
    if same:
        colour = low_NC[0].tolist() if torch.equal(low_NC[0], high_NC[0]) else None
        values = "red, green, blue" if low_NC.shape[1] == 3 else "grey"
        looks = f", of the single colour {colour} ({values} of 255)" if colour else ""
        raise DataError(
            f"data: all {len(chosen)} training pictures that were looked at are the same{looks}: nothing can be "
            f"learned from them. Look at one in a picture viewer. {EXPORT}"
        )
    return _blank(dataset, chosen, low_NC, high_NC) + _narrow(low_NC, high_NC)


def _ranges(images: ImageSet, ids_N: Tensor) -> tuple[bool, Tensor, Tensor]:
    """Return True if all these pictures are the same, and the least and largest value of each channel, uint8 [N, C]."""
    same, first, low, high = True, None, [], []
    for batch_NCHW in images.images.batches(torch.split(ids_N, AT_ONCE)):
        first = batch_NCHW[:1] if first is None else first
        same = same and bool((batch_NCHW == first).all())
        low.append(batch_NCHW.amin(dim=(2, 3)).cpu())
        high.append(batch_NCHW.amax(dim=(2, 3)).cpu())
    return same, torch.cat(low), torch.cat(high)


def _blank(dataset: Dataset, ids_N: Tensor, low_NC: Tensor, high_NC: Tensor) -> list[str]:
    blank_N = (low_NC == high_NC).all(dim=1)
    if not blank_N.any():
        return []
    count, missing = int(blank_N.sum()), missing_classes(dataset.train.labels_N[ids_N[blank_N]], dataset.class_names)
    which = name_some([name for name in dataset.class_names if name not in missing]) or "none (empty sets)"
    return [
        f"{count} of {len(ids_N)} training pictures that were looked at are of a single colour, in the class(es) "
        f"{which}; the first is number {int(ids_N[blank_N][0])} of the training set, counted from 0. {EXPORT}"
    ]


def _narrow(low_NC: Tensor, high_NC: Tensor) -> list[str]:
    low_C, high_C = low_NC.amin(dim=0).tolist(), high_NC.amax(dim=0).tolist()
    names = ("red", "green", "blue") if len(low_C) == 3 else ("grey",)
    channels = zip(names, low_C, high_C, strict=True)
    if constant := [f"{name} is {low}" for name, low, high in channels if low == high]:
        listed = " and ".join(constant)
        return [f"in all training pictures that were looked at {listed} (of 255): a channel is missing or was lost"]
    least, most = min(low_C), max(high_C)
    if most - least < DARKEST_RANGE:
        return [
            f"all values of the training pictures that were looked at lie between {least} and {most} of 255. {EXPORT}"
        ]
    return []
