"""Print the most probable class of images: `python -m trainlib.inference.predict RUN|CHECKPOINT IMAGE...`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence

from trainlib.data import find_images
from trainlib.data.pictures.decoding.decode_some import decode_some
from trainlib.data.pictures.files import PlainFiles, read_limited
from trainlib.data.sources.folders.class_folders import left_out_notices
from trainlib.distributed.devices.out_of_memory import explained, smaller_batch
from trainlib.errors import EXIT_FAILURE, EXIT_OK, EXIT_USER_ERROR, TrainlaunchError, UserError
from trainlib.inference.chosen_checkpoint import find_checkpoint
from trainlib.inference.trained_model import BATCH_SIZE, TrainedModel, trained_model
from trainlib.runs.terminal.printable import encode_anything, print_error, printable
from trainlib.runs.terminal.streams import OutputLostError, end_program
from trainlib.training.programs.arguments import add_code

STANDARD_INPUT = "-"

Answer = tuple[str, list[tuple[str, float]]]  # path, the named classes with their probabilities, most probable first


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line for each image; return 0 if all could be read, 1 if some could not, 2 if none could."""
    options = _parse(arguments)
    num_read = 0
    encode_anything()
    try:
        words = sys.argv[1:] if arguments is None else arguments
        command = ["launch", "predict", *words]
        model = trained_model(find_checkpoint(options.model), code=options.code, command=command)
        of_sets = model.thresholds is not None
        if of_sets and options.top != 1:
            raise UserError("--top: this model names every class above its threshold, or none: leave --top out")
        paths = list(_expand(options.images))
        path_width = max((len(printable(path)) for path in paths), default=0)
        name_width = max(len(printable(name)) for name in model.classes)
        for start in range(0, len(paths), options.batch_size):
            batch = paths[start : start + options.batch_size]
            with explained(f"a prediction of {len(batch)} images at a time", smaller_batch(len(batch))):
                answers = _predict(model, batch, options.top)
            for path, top in answers:
                num_read += 1
                as_json = _json_of_set if of_sets else _json_line
                print(as_json(path, top) if options.json else _line(path, top, path_width, name_width))
            sys.stdout.flush()
    except TrainlaunchError as error:
        print_error(error)
        return error.exit_code
    except OutputLostError as error:
        if not error.reader_is_gone:
            raise
        return EXIT_OK  # whoever reads has seen enough, as `head` does
    if not num_read:
        print_error("no image could be read")
        return EXIT_USER_ERROR
    return EXIT_OK if num_read == len(paths) else EXIT_FAILURE


def _expand(words: Sequence[str]) -> Iterator[str]:
    """Yield the image files, with each folder replaced by all images in it, at any depth, sorted.

    What a folder leaves out is named on standard error.
    """
    for word in words:
        if os.path.isdir(word):
            paths, found = find_images(word)
            for _, sentence in left_out_notices([found]):
                print(printable(sentence), file=sys.stderr)
            if not paths:
                print(f"{printable(word)}: no images in this folder, nor in those below it", file=sys.stderr)
            yield from paths
        else:
            yield word


def _predict(model: TrainedModel, paths: Sequence[str], top: int) -> list[Answer]:
    """Return an answer for each file that can be read; name the others on standard error."""
    images_NCHW, failures = decode_some(_Named(paths), range(len(paths)), model.reader)
    for row, reason in sorted(failures.items()):
        print(f"{printable(paths[row])}: cannot be read: {printable(reason)}", file=sys.stderr)
    read = [row for row in range(len(paths)) if row not in failures]
    if not read:
        return []
    probabilities_NC = model.probabilities_of_images(images_NCHW[read])
    answers = zip(read, map(model.prediction, probabilities_NC), strict=True)
    if model.thresholds is None:
        return [(paths[row], answer.top(top)) for row, answer in answers]
    return [(paths[row], [(name, answer.probabilities[name]) for name in answer.labels]) for row, answer in answers]


class _Named(PlainFiles):
    """The files that the command line names, of which - is standard input."""

    def read(self, index: int) -> bytes:
        """Return a file's bytes; raise as `PlainFiles` does."""
        return read_limited(sys.stdin.buffer) if self.paths[index] == STANDARD_INPUT else super().read(index)


def _line(path: str, top: Sequence[tuple[str, float]], path_width: int, name_width: int) -> str:
    predictions = "   ".join(f"{printable(name):<{name_width}}  {probability:.4f}" for name, probability in top)
    return f"{printable(path):<{path_width}}  {predictions or '-'}"


def _json_line(path: str, top: Sequence[tuple[str, float]]) -> str:
    name, probability = top[0]
    others = [{"class": name, "probability": probability} for name, probability in top]
    return json.dumps({"path": path, "class": name, "probability": probability, "top": others})


def _json_of_set(path: str, labels: Sequence[tuple[str, float]]) -> str:
    found = [{"class": name, "probability": probability} for name, probability in labels]
    return json.dumps({"path": path, "labels": found})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m trainlib.inference.predict",
        description="Classify images with a trained model.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="RUN|CHECKPOINT")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, or - for one on standard input")
    parser.add_argument("--top", type=int, default=1, metavar="K")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, metavar="N")
    parser.add_argument("--json", action="store_true")
    add_code(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    end_program(main)
