"""The curves of one run, or of several runs over one another."""

from __future__ import annotations

from collections.abc import Sequence

from launch.report.charts.chart import Chart, LegendEntry, Line, Sign
from launch.report.facts.run_facts import RunFacts
from launch.report.facts.series import Points, smoothed, thinned, window_of

BUCKETS = 500  # of a curve: it has two points in each
COLOURS = 8
TRAIN, VAL, TEST = range(3)  # colours of a single run's curves

METRICS = {"loss": "Loss", "accuracy": "Accuracy", "map": "Mean average precision"}
TRAIN_ONLY = {
    "lr": "Learning rate",
    "images_per_second": "Throughput, images per second",
    "grad_norm": "Norm of the gradient",
}


def charts_of(runs: Sequence[RunFacts]) -> list[Chart]:
    """Return the charts with data: loss, accuracy, mean average precision, learning rate, throughput, gradient norm."""
    charts = [_chart(title, _metric_lines(runs, key), runs) for key, title in METRICS.items()]
    for key, title in TRAIN_ONLY.items():
        places = range(len(runs)) if len(runs) > 1 else [None]
        lines = [line for run, index in zip(runs, places, strict=True) for line in _train_lines(run, key, index)]
        charts.append(_chart(title, lines, runs, from_zero=True))
    return [chart for chart in charts if chart.lines]


def common_legend(runs: Sequence[RunFacts]) -> list[LegendEntry]:
    """Return the legend that the charts of several runs share: an entry for each run and each split."""
    named = [LegendEntry(f"run{index}", run.name, "smooth", colour_of(index)) for index, run in enumerate(runs)]
    kinds = [("train", "train", "thin"), ("val", "validation", "line"), ("test", "test", "mark")]
    return [*named, *(LegendEntry(key, label, style, None) for key, label, style in kinds)]


def colour_of(index: int) -> int:
    """Return the colour of the run at this place, from 0."""
    return index % COLOURS


def _chart(title: str, lines: Sequence[Line], runs: Sequence[RunFacts], *, from_zero: bool = False) -> Chart:
    several = len(runs) > 1
    averaged = any(line.style == "raw" for line in lines)
    return Chart(
        title=title,
        lines=[line for line in lines if line.points],
        signs=[sign for index, run in enumerate(runs) for sign in _signs(run, index if several else None)],
        legend=[] if several else _own_legend(lines),
        note="Pale: every row. Strong: the mean of the rows around it." if averaged else "",
        from_zero=from_zero,
        steps_per_epoch=_common_epoch(runs),
    )


def _common_epoch(runs: Sequence[RunFacts]) -> int | None:
    """Return the number of steps of an epoch; None where it is not known, or not the same in all runs."""
    lengths = {run.steps_per_epoch for run in runs}
    return lengths.pop() if len(lengths) == 1 else None


def _metric_lines(runs: Sequence[RunFacts], key: str) -> list[Line]:
    if len(runs) == 1:
        run = runs[0]
        return [
            *_step_lines("train, steps", run.points(key, "train", "step"), TRAIN, ("steps",)),
            _line("train, epochs", run.points(key, "train", "epoch"), "line", TRAIN, ("epochs",)),
            _line("validation", run.points(key, "val"), "line", VAL, ("val",)),
            _line("test", run.points(key, "test"), "mark", TEST, ("test",)),
        ]
    lines = []
    for index, run in enumerate(runs):
        own, colour = f"run{index}", colour_of(index)
        train = run.points(key, "train", "epoch") or run.points(key, "train", "step")
        lines += [
            _line(f"{run.name}, train", train, "thin", colour, (own, "train")),
            _line(f"{run.name}, validation", run.points(key, "val"), "line", colour, (own, "val")),
            _line(f"{run.name}, test", run.points(key, "test"), "mark", colour, (own, "test")),
        ]
    return lines


def _train_lines(run: RunFacts, key: str, index: int | None) -> list[Line]:
    """Return the lines of a value that only training rows have, by step or, if there are more of these, by epoch."""
    points = max(run.points(key, "train", "step"), run.points(key, "train", "epoch"), key=len)
    label, colour = ("each row", TRAIN) if index is None else (run.name, colour_of(index))
    keys = () if index is None else (f"run{index}",)
    if key == "lr":
        return [_line(label, points, "smooth", colour, keys)]
    return _step_lines(label, points, colour, keys)


def _step_lines(label: str, points: Points, colour: int, keys: tuple[str, ...]) -> list[Line]:
    """Return a line of all rows and, where there are many, a second one of their mean."""
    window = window_of(points)
    if window == 1:
        return [_line(label, points, "smooth", colour, keys)]
    mean = thinned(smoothed(points, window), BUCKETS // 2)
    return [
        _line(label, points, "raw", colour, keys),
        Line(f"{label} (mean of {window})", mean, "smooth", colour, keys),
    ]


def _line(label: str, points: Points, style: str, colour: int, keys: tuple[str, ...]) -> Line:
    if len(points) == 1 and style != "mark":
        style = "line"  # which has dots: a line of one point would not be seen
    return Line(label, thinned(points, BUCKETS), style, colour, keys)


def _signs(run: RunFacts, index: int | None) -> list[Sign]:
    if index is None:
        return [Sign(event.step, event.sign, event.text) for event in run.events]
    keys, colour = (f"run{index}",), colour_of(index)
    return [Sign(event.step, event.sign, f"{run.name}: {event.text}", keys, colour) for event in run.events]


def _own_legend(lines: Sequence[Line]) -> list[LegendEntry]:
    """Return the legend of a single run's chart: an entry for each kind of line in it."""
    entries = [
        LegendEntry("steps", "train, steps", "smooth", TRAIN),
        LegendEntry("epochs", "train, epochs", "line", TRAIN),
        LegendEntry("val", "validation", "line", VAL),
        LegendEntry("test", "test", "mark", TEST),
    ]
    present = {key for line in lines if line.points for key in line.keys}
    return [entry for entry in entries if entry.key in present]
