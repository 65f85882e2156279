"""Find labels that are probably wrong: `python -m trainlib.inference.label_errors RUN INPUT.json OUTPUT.json`.

By confident learning (Northcutt et al., 2021), from out-of-fold predictions. INPUT.json has, for each sample, its path
(or its index in the training set) in `samples`, its class in `labels`, and in `probabilities` what a model that was not
trained on it says. OUTPUT.json gets `doubtful`, the most doubtful first: row, suggested, quality, and the first ones'
pictures, which are those of the run's data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainlib.config import read_resolved
from trainlib.data.survey.thumbnails import picture_url
from trainlib.errors import EXIT_OK, TrainlaunchError, UserError
from trainlib.models.own_parts.code_parts import parts_of
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.own_code.loading import code_of_run
from trainlib.runs.terminal.printable import print_error
from trainlib.runs.terminal.streams import end_program
from trainlib.training.programs.data.survey_data import samples_of

MOST_PICTURES = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return the exit code (see `errors`)."""
    run, given, output = map(Path, sys.argv[1:] if arguments is None else arguments)
    try:
        values = json.loads(given.read_text())
        doubtful = doubtful_labels(np.array(values["labels"]), np.array(values["probabilities"]))
        pictures = _pictures(run, [values["samples"][one["row"]] for one in doubtful[:MOST_PICTURES]])
        for one, picture in zip(doubtful, pictures, strict=False):
            one["picture"] = picture
        write_atomically(output, json.dumps({"doubtful": doubtful}))
    except TrainlaunchError as error:
        print_error(error)
        return error.exit_code
    return EXIT_OK


def doubtful_labels(labels_N: np.ndarray, probabilities_NC: np.ndarray) -> list[dict[str, Any]]:
    """Return the samples whose labels are probably wrong, the most doubtful first: row, suggested class, quality.

    quality   the probability of the label as it stands

    Raises UserError without cleanlab.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise UserError("label errors need the package cleanlab: pip install 'trainlaunch[labels]'") from error
    probabilities_NC = probabilities_NC / probabilities_NC.sum(axis=1, keepdims=True)
    ranked = find_label_issues(labels_N, probabilities_NC, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [
        {
            "row": row,
            "suggested": int(probabilities_NC[row].argmax()),
            "quality": float(probabilities_NC[row, labels_N[row]]),
        }
        for row in ranked.tolist()
    ]


def _pictures(run: Path, samples: Sequence[str]) -> list[str | None]:
    """Return a small picture of each sample, as a data URL; None for one that is not there any more."""
    config = read_resolved(run / "config.yaml")
    whole = config.model_copy(update={"data": config.data.model_copy(update={"fold": None})})
    custom = parts_of(config, code_of_run(config.code, [], run, ["launch", "labels"]))
    surveyed, source = samples_of(whole, custom.load_dataset())
    rows: dict[str, int] = {}
    for row, name in enumerate(surveyed.names):
        rows.setdefault(name, row)  # of data that are no files, those of train come first
    return [picture_url(source, rows[name]) if name in rows else None for name in samples]


if __name__ == "__main__":
    end_program(main)
