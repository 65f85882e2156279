"""curves.png: loss and accuracy of a run as a picture, drawn from metrics.jsonl when the run ends.

`launch report` shows more; this needs no command, and opens anywhere. Drawing must neither hold up nor harm the end of
a run: it happens aside, has a limited time, and whatever goes wrong is a warning.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlib.runs.files.durable import write_atomically
from trainlib.runs.files.json_records import read_lines
from trainlib.runs.files.run_files import RunFiles
from trainlib.runs.records.rows import tested_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger("trainlib.training.hooks.tracking.curves")

PATIENCE = 15.0  # seconds; matplotlib looks through all fonts when it is used for the first time on a machine
SMOOTH_FROM = 40  # rows of scope step; fewer are drawn as they are
TRAIN, VAL, TEST = "#0072b2", "#d55e00", "#009e73"  # of Okabe and Ito: colour-blind people can tell them apart

# Label, split, scope, colour, matplotlib's format of the line.
KINDS = (
    ("train, steps", "train", "step", TRAIN, "-"),
    ("train, epochs", "train", "epoch", TRAIN, "o-"),
    ("validation", "val", None, VAL, "o-"),
    ("test", "test", None, TEST, "D"),
)

Rows = Sequence[dict[str, Any]]


def draw_curves(run: Path) -> None:
    """Write `run/curves.png`, about 1400 x 520 pixels, in at most PATIENCE seconds. Never raises.

    The test stands at the step of the weights that were tested.
    """
    problems: list[str] = []

    def draw() -> None:
        try:
            rows = read_lines(run / "metrics.jsonl")
            if rows:
                files = RunFiles(run)
                step = tested_step(files.record("evaluation-test.json"), files.record("summary.json"))
                moved = [
                    row | {"step": step} if row.get("split") == "test" and step is not None else row for row in rows
                ]
                write_atomically(run / "curves.png", picture(moved, run.name))
        except ModuleNotFoundError as error:
            problems.append(f"the package is not installed: `pip install {error.name}`")
        except Exception as error:  # noqa: BLE001 - a picture is worth no run
            problems.append(f"{type(error).__name__}: {error}")

    drawing = threading.Thread(target=draw, name="curves.png", daemon=True)
    drawing.start()
    drawing.join(PATIENCE)
    if drawing.is_alive():
        problems.append(f"it took longer than {PATIENCE:.0f} s")
    if problems:
        logger.warning("curves.png could not be drawn (%s); launch report shows the curves", problems[0])


def picture(rows: Rows, name: str) -> bytes:
    """Return a PNG of loss and accuracy over steps, side by side. Values that are not finite are left out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.8, 4.0), dpi=130)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(left=0.05, right=0.985, bottom=0.12, top=0.84, wspace=0.13)
    figure.suptitle(name, x=0.05, ha="left", fontsize=12, fontweight="bold", parse_math=False)
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        _draw(axes, rows, key)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw(axes: Axes, rows: Rows, key: str) -> None:
    """One panel: training (each row pale, their mean over it), epochs, validation, and the test at its step."""
    drawn = []
    for label, split, scope, colour, style in KINDS:
        steps, values = _series(rows, key, split, scope)
        if scope == "step" and len(values) >= SMOOTH_FROM:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            values = _means(values, 2 * min(len(values) // 60 + 1, 250) + 1)
        if values:
            seen = "o" if len(values) == 1 and style == "-" else style  # a line of one point would not be
            drawn += axes.plot(steps, values, seen, color=colour, linewidth=1.4, markersize=4, label=label)
    axes.set_title(key, loc="left", fontsize=10)
    axes.set_xlabel("step", fontsize=9, color="#555555")
    axes.tick_params(labelsize=9, colors="#555555", length=0)
    axes.grid(axis="y", color="#e3e4e2", linewidth=0.8)
    axes.spines[:].set_visible(False)
    if drawn:
        axes.legend(handles=drawn, fontsize=9, frameon=False, labelcolor="#333333")


def _series(rows: Rows, key: str, split: str, scope: str | None) -> tuple[list[float], list[float]]:
    """Return the steps and the values of the rows of one kind."""
    chosen = [
        row
        for row in rows
        if row.get("split") == split and row.get("scope") == scope and isinstance(row.get(key), int | float)
    ]
    return [row["step"] for row in chosen], [row[key] for row in chosen]


def _means(values: Sequence[float], window: int) -> list[float]:
    """Each value's mean with its neighbours, half of `window` on either side; at the ends, as many as there are."""
    import numpy as np

    ones = np.ones(window)
    return list(np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same"))
