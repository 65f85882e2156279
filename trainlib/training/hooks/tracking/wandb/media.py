"""Histograms, the confusion matrix and sample mistakes, as W&B shows them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

from trainlib.runs.records import confusion
from trainlib.runs.records.rows import Row, health_scalars
from trainlib.runs.terminal.printable import printable


def health_values(row: Row) -> dict[str, Any]:
    """Return the numbers and the histograms of a row of health.jsonl."""
    import wandb

    histograms = {
        name: wandb.Histogram(np_histogram=(histogram["counts"], histogram["edges"]))
        for name, histogram in row["histograms"].items()
    }
    return health_scalars(row) | histograms


def evaluation_media(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the confusion matrix and the sample mistakes of an evaluation file, as W&B shows them.

    Of sets of classes there are the mistakes alone.
    """
    import wandb
    from PIL import Image

    names, split = [printable(name) for name in evaluation["classes"]], evaluation["split"]
    pictures = [
        wandb.Image(Image.open(io.BytesIO(base64.b64decode(mistake["png"])))) for mistake in evaluation["mistakes"]
    ]
    if "thresholds" in evaluation:
        found = [
            [picture, *(", ".join(names[label] for label in mistake[key]) for key in ("missed", "added"))]
            for picture, mistake in zip(pictures, evaluation["mistakes"], strict=True)
        ]
        return {f"{split}/mistakes": wandb.Table(columns=["picture", "missed", "added"], data=found)}
    columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
    counts = confusion.counts_in(evaluation)
    if len(names) <= confusion.MOST_WHOLE:  # W&B draws a cell for each pair that is listed
        rows = enumerate(confusion.whole(counts, len(names)))
        counts = [(true, predicted, count) for true, row in rows for predicted, count in enumerate(row)]
    cells = [[names[true], names[predicted], count] for true, predicted, count in counts]
    matrix = wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=columns, data=cells),
        {str(column): str(column) for column in columns},
        {"title": f"Confusion matrix, {split}"},
    )
    mistakes = [
        [
            picture,
            names[mistake["label"]],
            names[mistake["predicted"]],
            mistake["probability"],
        ]
        for picture, mistake in zip(pictures, evaluation["mistakes"], strict=True)
    ]
    table = wandb.Table(columns=["picture", "true", "predicted", "probability"], data=mistakes)
    return {f"{split}/confusion_matrix": matrix, f"{split}/mistakes": table}
