"""From samples that a source found to a data set: splits that are drawn, decoding, and the listing for the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainlib.config import DataConfig
from trainlib.data.dataset import Dataset, ImageSet
from trainlib.data.identity.listing import Listing, SampleFile, identities
from trainlib.data.identity.splits import split_test
from trainlib.data.pictures.reader import PictureReader
from trainlib.data.sources.samples import Samples
from trainlib.data.storage.cache import load_decoded
from trainlib.errors import DataError

TEST_FRACTION = 0.2  # of the samples, where neither the data nor the configuration say which are the test split
NAMED_AT_MOST = 5


@dataclass(frozen=True)
class TrainingFacts:
    """What is known of the training samples before any is decoded; see `ImageSet` and `Dataset`."""

    labels_N: Tensor
    identities_N: Tensor
    groups_N: Tensor | None
    val_ids: Tensor | None


def complete_splits(samples: Samples, config: DataConfig, seed: int) -> Samples:
    """Return the samples with a test split, drawn from train where the data bring none.

    Raises DataError where a group is on two sides, or where `data.test_fraction` asks for a split that is there.
    """
    _check_groups(samples)
    if samples.counts.get("test"):
        if config.test_fraction is not None:
            raise DataError(
                f"data.test_fraction: got {config.test_fraction}, but the data bring {samples.counts['test']} test "
                "samples of their own: leave the key out"
            )
        return samples
    facts = training_facts(samples)
    rows = torch.arange(samples.counts["train"])
    groups_N = None if facts.groups_N is None else facts.groups_N[rows]
    fraction = TEST_FRACTION if config.test_fraction is None else config.test_fraction
    chosen = split_test(facts.labels_N[rows], fraction, seed, config.split, facts.identities_N[rows], groups_N)
    if len(chosen) == 0:
        raise DataError("data.group: all training samples are of one group, so that none can be held out for the test")
    return samples.with_test(chosen)


def training_facts(samples: Samples) -> TrainingFacts:
    """Return what is known of the samples of train and of val, which make up the training images."""
    num_train, num_val = samples.counts["train"], samples.counts.get("val", 0)
    end = num_train + num_val
    return TrainingFacts(
        labels_N=samples.labels_N[:end],
        identities_N=identities(samples.names[:end]),
        groups_N=None if samples.groups is None else identities(samples.groups[:end]),
        val_ids=torch.arange(num_train, end) if num_val else None,
    )


def load_samples(samples: Samples, config: DataConfig, *, stop_requested: Callable[[], bool], is_main: bool) -> Dataset:
    """Return the data set of these samples, which have a test split.

    Raises DataError for damaged pictures, StoppedError when asked to stop.
    """
    facts = training_facts(samples)
    decoded = load_decoded(
        samples.files,
        samples.stamps,
        len(facts.labels_N),
        PictureReader.of(config),
        verify=config.verify == "full",
        stop_requested=stop_requested,
        is_main=is_main,
    )
    return Dataset(
        train=ImageSet(decoded.train, facts.labels_N, facts.identities_N, facts.groups_N),
        test=ImageSet(decoded.test, samples.labels_N[len(facts.labels_N) :]),
        class_names=samples.classes,
        mean=decoded.mean,
        std=decoded.std,
        listing=listing_of(samples, decoded.hashes),
        val_ids=facts.val_ids,
    )


def listing_of(samples: Samples, hashes: Sequence[str | None]) -> Listing:
    """Return the listing of the samples, with the SHA-256 of each file as far as it is known."""
    counts = {split: count for split, count in samples.counts.items() if count or split != "val"}
    rows = zip(samples.full_names(), samples.labels_N.tolist(), samples.stamps, hashes, strict=True)
    return Listing(samples.source, samples.classes, counts, tuple(SampleFile(*row) for row in rows))


def _check_groups(samples: Samples) -> None:
    """Raise DataError where the data's own splits cut a group."""
    if samples.groups is None:
        return
    sides: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for row in samples.rows(split):
            sides.setdefault(samples.groups[row], set()).add(split)
    cut = sorted(f"{group} (in {' and '.join(sorted(where))})" for group, where in sides.items() if len(where) > 1)
    if cut:
        more = f" and {len(cut) - NAMED_AT_MOST} more" if len(cut) > NAMED_AT_MOST else ""
        raise DataError(
            f"data.group: {len(cut)} group(s) are on two sides of a split of the data: {', '.join(cut[:NAMED_AT_MOST])}"
            f"{more}. Move each group to one side, or set data.group=null"
        )
