"""Charts and their geometry: axes, SVG paths and the data for the page's script; figure.html.j2 draws them.

The SVG is stretched to its place, and everything that has a shape or letters is HTML above it, so a chart fits any
width with letters of one size. It is complete without the script, which adds the read-out under the pointer, the
logarithmic axis and the switching of lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any

from launch.report.facts.series import Points, linear_ticks, log_ticks

WIDTH, HEIGHT = 2000, 1000  # of the drawing, in its own units
LABEL_GAP = 0.075  # of the width, between the signs of two events


@dataclass(frozen=True)
class Line:
    """One series of points.

    style    raw (pale, what a smooth line is made of) | smooth | thin | line (with dots) | mark (dots alone)
    colour   a colour of the palette, from 0
    keys     the legend entries that it belongs to: it is shown while all of them are on
    """

    label: str
    points: Points
    style: str
    colour: int
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Sign:
    """An event at a step, drawn as a sign over a vertical line, in its run's colour where there are several runs."""

    step: float
    sign: str
    text: str
    keys: tuple[str, ...] = ()
    colour: int | None = None


@dataclass(frozen=True)
class LegendEntry:
    """A button that switches lines on and off; `colour` is None where it is about lines of several colours."""

    key: str
    label: str
    style: str
    colour: int | None


@dataclass(frozen=True)
class Chart:
    """Lines, signs and legend of one chart.

    from_zero         the linear axis of values begins at 0
    steps_per_epoch   for the read-out; None where it is not known
    """

    title: str
    lines: Sequence[Line]
    signs: Sequence[Sign] = ()
    legend: Sequence[LegendEntry] = ()
    note: str = ""
    from_zero: bool = False
    steps_per_epoch: int | None = None


@dataclass(frozen=True)
class Axis:
    """An axis from its first tick to its last."""

    name: str
    ticks: list[float]
    scale: Callable[[float], float]

    def position(self, value: float) -> float:
        """Return 0 for the first tick, 1 for the last; a value beyond them is put on the edge."""
        low, high = self.scale(self.ticks[0]), self.scale(self.ticks[-1])
        return min(max((self.scale(value) - low) / (high - low), 0.0), 1.0)

    def percent(self, value: float) -> str:
        """Return the position as a percentage for CSS."""
        return f"{100 * self.position(value):.2f}"


@dataclass(frozen=True)
class Path:
    """One path of the SVG: its corners, its classes, and the legend entries that it belongs to."""

    d: str
    kind: str
    keys: str


class Plot:
    """A chart with its axes: `steps` across; `axes` upwards, a linear one and, if possible, a logarithmic one."""

    view_box = f"0 0 {WIDTH} {HEIGHT}"

    def __init__(self, chart: Chart):
        self.chart = chart
        values = [value for line in chart.lines for _, value in line.points]
        self.axes = [_linear_axis(values, chart.from_zero), *_log_axis(values)]
        self.steps = _step_axis([step for line in chart.lines for step, _ in line.points])

    @property
    def step_ticks(self) -> list[float]:
        """Round steps for the labels of the axis."""
        first, last = self.steps.ticks
        return [tick for tick in linear_ticks(first, last, 6) if first <= tick <= last]

    @property
    def epoch_ticks(self) -> list[tuple[int, float]]:
        """Round epochs between the axis' ends, each with the step at which it ends; none where epochs are not known."""
        per_epoch, last = self.chart.steps_per_epoch, self.steps.ticks[1]
        if not per_epoch:
            return []
        ticks = linear_ticks(0, last / per_epoch, 6)
        epochs = [int(tick) for tick in ticks if tick == int(tick) and 0 < tick * per_epoch <= last]
        return [(epoch, epoch * per_epoch) for epoch in epochs]

    @property
    def description(self) -> str:
        """The last value of every line, for readers who do not see it."""
        ends = [(line.label, line.points[-1]) for line in self.chart.lines if line.style != "raw"]
        return "; ".join(f"{label}: {value:.4g} at step {step:.0f}" for label, (step, value) in ends)

    def grid(self, axis: Axis) -> str:
        """Return a path of one horizontal line for each tick of an axis of values."""
        return "".join(f"M0 {(1 - axis.position(tick)) * HEIGHT:.0f}H{WIDTH}" for tick in axis.ticks)

    def paths(self, axis: Axis) -> list[Path]:
        """Return the lines over an axis of values.

        A dot is a line of no length with a round end, which stays round in a stretched drawing.
        """
        paths = []
        for line in self.chart.lines:
            corners = [
                f"{self.steps.position(step) * WIDTH:.0f} {(1 - axis.position(value)) * HEIGHT:.0f}"
                for step, value in line.points
            ]
            keys = " ".join(line.keys)
            if line.style != "mark":
                paths.append(Path("M" + "L".join(corners), f"{line.style} c{line.colour}", keys))
            if line.style in ("line", "mark"):
                dots = "".join(f"M{corner}h0" for corner in corners)
                paths.append(Path(dots, f"{'mark' if line.style == 'mark' else 'dots'} c{line.colour}", keys))
        return paths

    def signs(self) -> list[tuple[Sign, bool]]:
        """Return the events by their step, each with whether there is room for its sign beside the one before."""
        shown = []
        last = -1.0
        for sign in sorted(self.chart.signs, key=lambda sign: sign.step):
            position = self.steps.position(sign.step)
            has_room = position - last >= LABEL_GAP
            last = position if has_room else last
            shown.append((sign, has_room))
        return shown

    def data(self) -> dict[str, Any]:
        """Return the points that are drawn, their values to five digits, for the page's script."""
        return {
            "steps": self.steps.ticks,
            "perEpoch": self.chart.steps_per_epoch,
            "signs": [[sign.step, sign.text] for sign in self.chart.signs],
            "lines": [
                {
                    "label": line.label,
                    "colour": line.colour,
                    "keys": line.keys,
                    "x": [step for step, _ in line.points],
                    "y": [float(f"{value:.5g}") for _, value in line.points],
                }
                for line in self.chart.lines
            ],
        }


def _step_axis(steps: Sequence[float]) -> Axis:
    """Return the axis from 0 to the last step, whose ends need not be round."""
    first, last = min(0.0, *steps), max(steps)
    return Axis("step", [first, last if last > first else first + 1], float)


def _linear_axis(values: Sequence[float], from_zero: bool) -> Axis:
    return Axis("linear", linear_ticks(min(0.0, *values) if from_zero else min(values), max(values)), float)


def _log_axis(values: Sequence[float]) -> list[Axis]:
    """Return an axis for the values above 0, on whose edge the others lie; none without two different ones."""
    positive = {value for value in values if value > 0}
    if len(positive) < 2:
        return []
    ticks = log_ticks(min(positive), max(positive))
    return [Axis("log", ticks, lambda value: log10(max(value, ticks[0])))]
