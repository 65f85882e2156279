"""Tell about a data set before training: `python -m trainlib.training.programs.data.survey_data CONFIG...`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainlib.config import Config
from trainlib.data import Dataset, DatasetInfo, dataset_info, list_files, load_data
from trainlib.data.survey.facts import SPLITS, Surveyed, facts_of
from trainlib.data.survey.looking import ArrayPictures, FilePictures, PictureSource, look_at_all, perceptual_hash
from trainlib.data.survey.text import survey_text
from trainlib.errors import EXIT_OK, TrainlaunchError
from trainlib.models.own_parts.code_parts import parts_of
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.files.json_records import to_json
from trainlib.runs.own_code.loading import load_with_code
from trainlib.runs.terminal.printable import print_error, printable
from trainlib.runs.terminal.streams import end_program
from trainlib.runs.terminal.tables import show
from trainlib.training.build.data import build_plan
from trainlib.training.programs.arguments import add_code

PROGRESS_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None, config: Config | None = None) -> int:
    """Print what is in the data, write the first batch as a picture, or both; return the exit code (see `errors`).

    config   the configuration that the arguments name, where the caller has read it already
    """
    options = _parse(arguments)
    try:
        config, _, parts = load_with_code(options.config, options.code, ["launch", "data", *options.config], config)
        custom = parts_of(config, parts)
        own = custom.load_dataset()
        if options.batch is None or options.facts is not None or options.json:
            facts = survey(config, pictures=options.facts is not None, own=own)
            if options.facts is not None:
                write_atomically(options.facts, to_json(facts))
            if options.json:
                print(to_json(without_pictures(facts)))
            else:
                show(*survey_text(facts))
        if options.batch is not None:  # after the rest, which tells of a damaged picture too: that ends this
            from trainlib.training.programs.data.first_batch import write_first_batch

            write_first_batch(config, options.batch, own, custom.transform)
            told = f"the first batch is in {printable(str(options.batch))}"
            print(told, file=sys.stderr if options.json else sys.stdout)
    except TrainlaunchError as error:
        print_error(error)
        return error.exit_code
    return EXIT_OK


def survey(config: Config, *, pictures: bool, own: Dataset | None = None) -> dict[str, Any]:
    """Return the facts about the configured data; every picture is read and decoded once.

    pictures   give the facts small pictures, for a page
    own        a data set of the user's own, in place of the configured one
    """
    surveyed, source = samples_of(config, own)
    looks = look_at_all(source, len(surveyed.names), perceptual_hash(), _progress(len(surveyed.names)))
    facts = facts_of(surveyed, looks)
    if pictures:
        from trainlib.data.survey.thumbnails import add_pictures

        add_pictures(facts, surveyed, source, config.seed)
    return facts


def samples_of(config: Config, own: Dataset | None = None) -> tuple[Surveyed, PictureSource]:
    """Return the samples of the configured data set, in the splits that a run would have, and their pictures."""
    samples = list_files(config.data, config.seed, warn=False)  # `dataset_info` tells of files that are left out
    if samples is not None:
        classes, names = samples.classes, list(samples.full_names())
        labels_N = samples.labels_N.numpy()
        source: PictureSource = FilePictures(samples.files, config.data.channels)
        info = dataset_info(config.data, config.seed)
    else:
        dataset = load_data(config.data, config.seed, own=own)
        classes = dataset.class_names
        labels_N = np.concatenate([dataset.train.labels_N.numpy(), dataset.test.labels_N.numpy()])
        names = [str(i) for images in (dataset.train, dataset.test) for i in range(len(images.labels_N))]
        source = ArrayPictures([dataset.train.images, dataset.test.images])
        info = DatasetInfo(dataset.train.labels_N, len(classes), dataset.train.identities_N)
    splits_N = np.full(len(names), SPLITS.index("test"))
    splits_N[: len(info.labels_N)] = SPLITS.index("train")
    splits_N[_validation(config, info)] = SPLITS.index("val")
    return Surveyed(config.data.name, classes, names, labels_N, splits_N), source


def without_pictures(value: Any) -> Any:
    """Return facts without their pictures."""
    if isinstance(value, dict):
        return {key: without_pictures(part) for key, part in value.items() if key not in ("picture", "examples")}
    return [without_pictures(part) for part in value] if isinstance(value, list) else value


def _validation(config: Config, info: DatasetInfo) -> np.ndarray:
    """Return the indices of the validation samples."""
    whole = config.model_copy(update={"data": config.data.model_copy(update={"limit": None})})
    _, val_ids = build_plan(whole, info.labels_N, info.identities_N, info.groups_N, info.val_ids)
    indices: np.ndarray = val_ids.numpy()
    return indices


def _progress(count: int) -> Callable[[int], None]:
    """Return what tells on standard error, now and then, how many pictures were looked at."""
    began = time.monotonic()
    next_line = began + PROGRESS_SECONDS

    def tell(done: int) -> None:
        nonlocal next_line
        now = time.monotonic()
        if now >= next_line and done < count:
            left = (now - began) / done * (count - done)
            print(f"looked at {done:,} of {count:,} pictures, {left:.0f} s left", file=sys.stderr, flush=True)
            next_line = now + 5 * PROGRESS_SECONDS

    return tell


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainlib.training.programs.data.survey_data",
        description="Tell about a data set.",
        allow_abbrev=False,
    )
    parser.add_argument("config", nargs="+", metavar="CONFIG | key=value")
    add_code(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--facts", type=Path, metavar="FILE", help="write the facts, with pictures, as JSON")
    parser.add_argument("--batch", type=Path, metavar="FILE.png", help="write a picture of the first training batch")
    options = parser.parse_intermixed_args(arguments)
    if options.batch is not None and options.batch.suffix.lower() != ".png":
        parser.error(f"--batch: got {options.batch}, must end in .png")
    return options


if __name__ == "__main__":
    end_program(main)
