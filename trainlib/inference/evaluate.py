"""Compute exact metrics of a trained model: `python -m trainlib.inference.evaluate RUN|CHECKPOINT ...`.

The samples are cut into the same pieces on any number of processes, and everything is counted in the samples' own
order, so that the figures do not depend on that number.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from trainlib.config import Config, custom_part_missing, is_custom
from trainlib.data import ImageSet, load_class_folder, load_data
from trainlib.data.batches.loader import BatchLoader, MicroBatch
from trainlib.data.batches.rank_slice import RankSlice
from trainlib.data.identity.listing import Listing
from trainlib.data.pictures.decoding.reader import PictureReader
from trainlib.data.sources.folders.class_folders import left_out_notices, list_class_folders
from trainlib.data.survey.inspection import name_some
from trainlib.distributed import process_group
from trainlib.distributed.devices.choice import choose_device_type
from trainlib.distributed.devices.out_of_memory import explained, smaller_batch
from trainlib.errors import EXIT_OK, DataError, TrainlaunchError, UserError
from trainlib.inference.chosen_checkpoint import ChosenCheckpoint, find_checkpoint
from trainlib.inference.evaluation_text import evaluation_text
from trainlib.inference.own_parts import own_parts
from trainlib.inference.prediction_file import Answers, check_target, open_prediction_file
from trainlib.inference.trained_model import build_module
from trainlib.models.forward.tta import with_tta
from trainlib.models.losses import Objective
from trainlib.models.own_parts.custom_parts import NO_CUSTOM_PARTS, CustomParts
from trainlib.runs.attempt.status import read_run
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import to_json
from trainlib.runs.machine import launch_variables
from trainlib.runs.terminal.printable import encode_anything, print_error, printable
from trainlib.runs.terminal.streams import end_program
from trainlib.runs.terminal.tables import show
from trainlib.training.build.data import plan_of
from trainlib.training.checkpoints.provenance import data_changes, read_listing
from trainlib.training.metrics.predictions import collector, describe, write_evaluation
from trainlib.training.programs.arguments import add_code
from trainlib.training.step.evaluate import OnBatch, metrics_over

logger = logging.getLogger("trainlib.inference")

SPLITS = ("train", "val", "test")
BATCH_SIZE = 256  # at most, where none is given; less where the training took less at a time
PIPED_WIDTH = 100  # of lines that go to a file


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate, print, and write `evaluation-<split>.json` into the run's directory; return the exit code."""
    options = _parse(arguments)
    is_main = launch_variables.rank() == 0
    encode_anything()
    try:
        chosen = find_checkpoint(options.model)
        place = chosen.run.stat() if chosen.run is not None else None
        if options.predictions is not None:
            check_target(options.predictions)
        words = sys.argv[1:] if arguments is None else arguments
        custom = own_parts(chosen, options.code, ["launch", "eval", *words], evaluated=True, data=options.data is None)
        evaluation = evaluate(chosen, options.split, options.data, options.batch_size, options.predictions, custom)
    except TrainlaunchError as error:
        if is_main or not isinstance(error, UserError):  # every rank finds the same mistakes
            print_error(error)
        return error.exit_code
    if is_main:
        width = shutil.get_terminal_size((PIPED_WIDTH, 0)).columns
        if options.json:
            print(to_json(evaluation))
        else:
            show(*evaluation_text(evaluation, width))
            _warn_of_missing_classes(evaluation)
            if options.predictions is not None:
                print(f"\npredictions in {printable(str(options.predictions))}")
        if chosen.run is not None:
            for problem in read_run(chosen.run).problems:
                print(f"warning: {printable(problem)}", file=sys.stderr)
            if options.data is None:
                _write(chosen.run, place, evaluation)
    return EXIT_OK


def evaluate(
    chosen: ChosenCheckpoint,
    split: str,
    folder: str | None,
    batch_size: int | None,
    predictions: Path | None = None,
    custom: CustomParts = NO_CUSTOM_PARTS,
) -> dict[str, Any]:
    """Return the evaluation of a split, or of the class folders in `folder`, as `evaluation-<split>.json` holds it.

    batch_size   images that one rank evaluates at once; None for the size that the training used, at most 256
    predictions  the CSV file to write (see `prediction_file`)
    custom       parts of the user's own

    Every rank calls this and gets the whole evaluation. Raises UserError if the data is missing or does not fit the
    model.
    """
    config = chosen.config
    if is_custom(config.loss.name) and custom.loss is None:
        raise UserError(f"loss.name: {custom_part_missing(config.loss.name)}")
    samples = _samples(chosen, split, folder, custom)
    size = batch_size or min(config.train.micro_batch_size or config.train.batch_size, BATCH_SIZE)
    with process_group.joined(_possible_here(config).train) as accelerator, torch.no_grad():
        # All ranks take rank 0's: a run that goes on may have a new best checkpoint by the time rank 1 looks.
        chosen = process_group.broadcast_object(chosen)
        if predictions is None:
            return _evaluate(chosen, accelerator, samples, size, folder or split, custom)
        rank = accelerator.process_index
        with open_prediction_file(predictions, rank, Answers.of(chosen), samples.names) as file:
            return _evaluate(chosen, accelerator, samples, size, folder or split, custom, file.add)


def _evaluate(
    chosen: ChosenCheckpoint,
    accelerator: Accelerator,
    samples: _Samples,
    size: int,
    name: str,
    custom: CustomParts,
    on_batch: OnBatch = lambda micro_batch, logits_NC: None,
) -> dict[str, Any]:
    config, device, ids_N = chosen.config, accelerator.device, samples.ids_N
    model = accelerator.prepare_model(build_module(chosen, device, custom.model), evaluation_mode=True)
    num_pieces = -(-len(ids_N) // size)
    rank_slice = RankSlice(accelerator.process_index, accelerator.num_processes, None, virtual_shards=num_pieces)
    images = replace(samples.images, images=samples.images.images.to(device))
    batches = BatchLoader(images, chosen.preprocess, rank_slice, device)
    objective = Objective(chosen.loss, len(chosen.classes), device, custom.loss)
    collected = collector(config, len(chosen.classes), device)
    network = with_tta(model, config.evaluation.test_time)

    def see(micro_batch: MicroBatch, logits_NC: torch.Tensor) -> None:
        collected.add(micro_batch, logits_NC)
        on_batch(micro_batch, logits_NC)

    with explained(f"an evaluation of {size} images at a time", smaller_batch(size)):
        metrics = metrics_over(network, objective, batches, ids_N, size, see, chosen.thresholds, custom.metrics)
    source = {"split": name, "step": chosen.checkpoint.step, "weights": chosen.weights}
    return describe(
        collected.gathered(),
        batches,
        ids_N,
        chosen.classes,
        metrics,
        source,
        lambda row: samples.file_of(int(ids_N[row])),
    )


class _Samples(NamedTuple):
    """What is evaluated.

    ids_N   indices of the samples in their image set, int64 [N], ascending
    names   the path of each sample of the image set, or its index in the whole training set where folds of samples
            that are no files were cut; None where that is its index in the image set
    file_of   where a person finds the file of the sample with an index; None where samples are no files
    """

    images: ImageSet
    ids_N: torch.Tensor
    names: Sequence[str] | Sequence[int] | None
    file_of: Callable[[int], str | None]


def _samples(chosen: ChosenCheckpoint, split: str, folder: str | None, custom: CustomParts) -> _Samples:
    """Return the samples to evaluate: of a split of the run's data, or of class folders."""
    config, is_main = chosen.config, launch_variables.rank() == 0
    if folder is not None and config.data.has_sets:
        raise UserError(
            f"--data: got {folder}, and pictures in class folders have one label each, while this model names several: "
            "put the pictures into the split test of the table that the run was trained on (data.table)"
        )
    if folder is not None:
        listed = list_class_folders(Path(folder), chosen.classes)
        if is_main:
            for _, sentence in left_out_notices([listed]):
                print(printable(sentence), file=sys.stderr)
        image_set = load_class_folder(listed, chosen.classes, PictureReader.of(config.data))
        below = listed.names(chosen.classes)
        ids_N = torch.arange(len(image_set.labels_N))
        return _Samples(image_set, ids_N, below, lambda index: os.path.join(folder, below[index]))
    if is_main and config.data.name == "image_folder":
        print(f"the images are those in {printable(os.path.abspath(config.data.root))} (data.root)", file=sys.stderr)
    dataset = load_data(config.data, config.seed, is_main=is_main, own=custom.load_dataset())
    _tell_changes(chosen, dataset.listing)
    if dataset.class_names != chosen.classes:
        raise DataError(
            f"data.root: {config.data.root} has the classes {', '.join(dataset.class_names)}, and the model knows "
            f"{', '.join(chosen.classes)}; evaluate it on other folders with --data"
        )
    names: Sequence[str] | Sequence[int] | None = [file.name for file in dataset.listing.files] or None
    num_train = len(dataset.train.labels_N)  # names are those of the training images, then of the test
    if config.data.fold is not None and names is None:
        of_whole = [dataset.train.identities_N, dataset.test.identities_N]
        names = [number for numbers_N in of_whole if numbers_N is not None for number in numbers_N.tolist()]
    if split == "test":
        return _Samples(
            dataset.test,
            torch.arange(len(dataset.test.labels_N)),
            names and names[num_train:],
            lambda index: dataset.listing.file_of(num_train + index, config.data.root),
        )
    plan, val_ids = plan_of(config, dataset)
    ids_N = plan.ids_N if split == "train" else val_ids
    if not len(ids_N):
        raise UserError("--split val: the run has no validation split (data.val_fraction is 0); take train or test")
    return _Samples(dataset.train, ids_N, names, lambda index: dataset.listing.file_of(index, config.data.root))


def _tell_changes(chosen: ChosenCheckpoint, listing: Listing) -> None:
    """Warn, on rank 0, where the data are not those that the model was trained with, and evaluate all the same."""
    recorded = chosen.checkpoint.manifest.get("data")
    if launch_variables.rank() != 0 or not isinstance(recorded, Mapping):
        return
    run = RunDirectory(chosen.run or chosen.checkpoint.path.parents[1])
    if changed := data_changes(recorded, read_listing(run), listing):
        logger.warning("the data are not those that the model was trained with: %s", "; ".join(changed))


def _warn_of_missing_classes(evaluation: Mapping[str, Any]) -> None:
    """Print which classes have no image, so that the figures are not taken for those of all classes."""
    missing = [row["name"] for row in evaluation["per_class"] if not row["count"]]
    if missing:
        effect = "they count as 0 in mAP and macro F1" if "map" in evaluation else "the figures say nothing of them"
        print(
            f"warning: no image is of {len(missing)} of the {len(evaluation['per_class'])} classes "
            f"({name_some(missing)}): {effect}",
            file=sys.stderr,
        )


def _possible_here(config: Config) -> Config:
    """Return the configuration on a device of this machine; in float32 if it is in fp16 and there is no GPU."""
    update = {"device": "auto"}
    if config.train.precision == "fp16" and choose_device_type("auto") == "cpu":
        update["precision"] = "fp32"
    return config.model_copy(update={"train": config.train.model_copy(update=update)})


def _write(run: Path, place: os.stat_result | None, evaluation: dict[str, Any]) -> None:
    """Write the figures into the run's directory, where it is still the one in `place`."""
    try:
        if place is None or not os.path.samestat(place, run.stat()):
            raise FileNotFoundError(f"{run} is not the run that was evaluated any more: it was moved, or begun again")
        write_evaluation(run, evaluation)
    except OSError as error:
        print(f"warning: the evaluation was not written ({error})", file=sys.stderr)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainlib.inference.evaluate", description="Evaluate a trained model.", allow_abbrev=False
    )
    parser.add_argument("model", metavar="RUN|CHECKPOINT")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--data", metavar="DIR", help="class folders to evaluate on instead")
    parser.add_argument("--batch-size", type=int, metavar="N")
    parser.add_argument("--predictions", type=Path, metavar="FILE.csv", help="the answer to each sample")
    parser.add_argument("--json", action="store_true")
    add_code(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    end_program(main)
