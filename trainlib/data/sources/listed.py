"""Listing of the configured data set's files, with the splits that are drawn, and its loading."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainlib.config import DataConfig, custom_part_missing
from trainlib.data.datasets.dataset import Dataset, ImageSet
from trainlib.data.datasets.folds import fold_rows
from trainlib.data.identity.listing import Listing, identities
from trainlib.data.identity.sample_files import SampleFiles
from trainlib.data.identity.splits import split_test
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.sources.folders.image_folder import list_image_folder
from trainlib.data.sources.hugging_face import list_hugging_face
from trainlib.data.sources.packed.archive import list_archive
from trainlib.data.sources.samples import SPLITS, Samples
from trainlib.data.sources.table import list_table
from trainlib.data.storage.cache import load_decoded
from trainlib.errors import DataError, UserError

TEST_FRACTION = 0.2  # of the samples, where neither the data nor the configuration say which are the test split
NAMED_AT_MOST = 5

logger = logging.getLogger("trainlib.data")


@dataclass(frozen=True)
class TrainingFacts:
    """What is known of the training samples before any is decoded; see `ImageSet` and `Dataset`."""

    labels_N: Tensor
    identities_N: Tensor
    groups_N: Tensor | None
    val_ids: Tensor | None

    def without(self, rows: Tensor) -> TrainingFacts:
        """Return what is known of the samples that are left without these rows."""
        is_left_N = torch.ones(len(self.labels_N), dtype=torch.bool).index_fill(0, rows, False)
        return TrainingFacts(
            self.labels_N[is_left_N],
            self.identities_N[is_left_N],
            None if self.groups_N is None else self.groups_N[is_left_N],
            None if self.val_ids is None else self.val_ids - len(rows),
        )


@dataclass(frozen=True)
class Listed:
    """The samples of a data set of files with all their splits, before any is read."""

    samples: Samples
    training: TrainingFacts
    listing: Listing


def listed_files(config: DataConfig, seed: int) -> Listed:
    """List the samples of the configured data set of files; nothing is decoded.

    seed   of the run: a test split that the data do not bring is drawn from it

    Raises DataError for files that are missing or of the wrong form.
    """
    samples = found_samples(config)
    _check_groups(samples)
    facts = _training_facts(samples)
    if config.fold is not None:
        samples = samples.without_test()
        test_rows = fold_rows(config, seed, facts.labels_N, facts.identities_N, facts.groups_N, facts.val_ids)
        samples, facts = samples.with_test(test_rows), facts.without(test_rows)
    elif not samples.counts.get("test"):
        test_rows = _drawn_test(samples, facts, config, seed)
        samples = samples.with_test(test_rows)
        facts = facts.without(test_rows)
    elif config.test_fraction is not None:
        raise DataError(
            f"data.test_fraction: got {config.test_fraction}, but the data bring {samples.counts['test']} test samples "
            "of their own: leave the key out"
        )
    counts = {split: count for split, count in samples.counts.items() if count or split != "val"}
    files = SampleFiles(samples.full_names(), samples.labels_N.numpy(), samples.stamps)
    listing = Listing(samples.source, samples.classes, counts, files)
    assert listing.digest  # computed here, once for all ranks of the machine
    return Listed(samples, facts, listing)


def load_files(
    listed: Listed,
    config: DataConfig,
    seed: int = 0,
    *,
    stop_requested: Callable[[], bool],
    is_main: bool,
    tell_decoded: Callable[[int, int], None] = lambda done, total: None,
) -> Dataset:
    """Return the data set of listed samples; random cuts are drawn from the seed. The rest is as for `load_data`.

    Raises DataError for damaged pictures, StoppedError when asked to stop.
    """
    samples, facts = listed.samples, listed.training
    num_train = len(facts.labels_N)
    decoded = load_decoded(
        samples.files,
        samples.stamps,
        num_train,
        PictureReader.of(config, seed),
        place=os.path.realpath(os.path.expanduser(config.table or config.root)),
        cache=config.cache,
        verify=config.verify == "full",
        stop_requested=stop_requested,
        is_main=is_main,
        tell_decoded=tell_decoded,
    )
    return Dataset(
        train=ImageSet(decoded.train, facts.labels_N, facts.identities_N, facts.groups_N),
        test=ImageSet(decoded.test, samples.labels_N[num_train:]),
        class_names=samples.classes,
        mean=decoded.mean,
        std=decoded.std,
        listing=listed.listing.with_hashes(decoded.hashes),
        val_ids=facts.val_ids,
    )


def tell(samples: Samples) -> None:
    """Log what the user should know of the samples."""
    for level, sentence in samples.notices:
        logger.log(level, "%s", sentence)


def found_samples(config: DataConfig) -> Samples:
    """Return the samples of the configured data set of files, in the splits that the data bring."""
    match config.name:
        case "image_folder":
            return list_image_folder(
                Path(config.root), group=config.group, is_older=config.is_older and config.split == "index"
            )
        case "table":
            separator = config.label_separator if config.has_sets else None
            return list_table(Path(config.root), config.table or "", group=config.group, separator=separator)
        case "archive":
            return list_archive(Path(config.root), group=config.group)
        case "hf":
            return list_hugging_face(Path(config.root))
    raise UserError(f"data.name: {custom_part_missing(config.name)}")


def _training_facts(samples: Samples) -> TrainingFacts:
    """Return what is known of the samples of train and of val, which make up the training images."""
    num_train, num_val = samples.counts["train"], samples.counts.get("val", 0)
    end = num_train + num_val
    return TrainingFacts(
        labels_N=samples.labels_N[:end],
        identities_N=identities(samples.names[:end]),
        groups_N=None if samples.groups is None else identities(samples.groups[:end]),
        val_ids=torch.arange(num_train, end) if num_val else None,
    )


def _drawn_test(samples: Samples, facts: TrainingFacts, config: DataConfig, seed: int) -> Tensor:
    """Return the rows of train that are held out for the test."""
    end = samples.counts["train"]
    groups_N = None if facts.groups_N is None else facts.groups_N[:end]
    fraction = TEST_FRACTION if config.test_fraction is None else config.test_fraction
    chosen = split_test(facts.labels_N[:end], fraction, seed, config.split, facts.identities_N[:end], groups_N)
    if len(chosen) == 0:
        raise DataError("data.group: all training samples are of one group, so that none can be held out for the test")
    return chosen


def _check_groups(samples: Samples) -> None:
    """Raise DataError where the data's own splits cut a group."""
    if samples.groups is None:
        return
    sides: dict[str, set[str]] = {}
    for split in SPLITS:
        for row in samples.rows(split):
            sides.setdefault(samples.groups[row], set()).add(split)
    cut = sorted(f"{group} (in {' and '.join(sorted(where))})" for group, where in sides.items() if len(where) > 1)
    if cut:
        more = f" and {len(cut) - NAMED_AT_MOST} more" if len(cut) > NAMED_AT_MOST else ""
        raise DataError(
            f"data.group: {len(cut)} group(s) are on two sides of a split of the data: {', '.join(cut[:NAMED_AT_MOST])}"
            f"{more}. Move each group to one side, or set data.group=null"
        )
