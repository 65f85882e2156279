"""A chart: lines in an SVG that is stretched to its place, and everything that has a shape or letters in HTML above it.

So it fits any width with letters of one size. It is complete without the script, which adds the read-out under the
pointer, the logarithmic axis and the switching of lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10

from launch.report.markup import Content, Markup, element, json_data, markup
from launch.report.series import Point, Points, linear_ticks, log_ticks, tick_label

WIDTH, HEIGHT = 2000, 1000  # of the drawing, in its own units
LABEL_GAP = 0.075  # of the width, between the signs of two events


@dataclass(frozen=True)
class Line:
    """One series.

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
    """An event at a step: a sign over a vertical line; the colour of a run where there are several."""

    step: float
    sign: str
    text: str
    keys: tuple[str, ...] = ()
    colour: int | None = None


@dataclass(frozen=True)
class LegendEntry:
    """What switches lines on and off; `colour` is None for an entry that is about lines of several colours."""

    key: str
    label: str
    style: str
    colour: int | None


@dataclass(frozen=True)
class Chart:
    """What is drawn. `from_zero`: the axis of values begins at 0, where it need not be logarithmic."""

    title: str
    lines: Sequence[Line]
    signs: Sequence[Sign] = ()
    legend: Sequence[LegendEntry] = ()
    note: str = ""
    from_zero: bool = False
    steps_per_epoch: int | None = None


@dataclass(frozen=True)
class Axis:
    """An axis, which its ticks span."""

    name: str
    ticks: list[float]
    scale: Callable[[float], float]

    def position(self, value: float) -> float:
        """0 at the first tick, 1 at the last; what lies beyond is put on the edge."""
        low, high = self.scale(self.ticks[0]), self.scale(self.ticks[-1])
        return min(max((self.scale(value) - low) / (high - low), 0.0), 1.0)


def figure(chart: Chart) -> Markup:
    """The chart with its title, its switches and its data for the read-out."""
    values = [value for line in chart.lines for _, value in line.points]
    axes = [_linear_axis(values, chart.from_zero), *_log_axis(values)]
    steps = _step_axis([step for line in chart.lines for step, _ in line.points])
    groups = [
        element("g", _grid(axis), [_path(line, axis, steps) for line in chart.lines], class_=axis.name) for axis in axes
    ]
    drawing = element(
        "svg",
        groups,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=_description(chart),
    )
    plot = element(
        "div",
        drawing,
        [_value_ticks(axis) for axis in axes],
        _step_ticks(steps),
        _signs(chart.signs, steps),
        element("div", class_="cursor", hidden=""),
        element("div", class_="readout", role="status", hidden=""),
        class_="plot",
        tabindex=0,
        role="group",
        aria_label=f"{chart.title}: the arrow keys read it out, step by step",
    )
    switch = element("button", "log scale", type="button", class_="scale", aria_pressed="false")
    head = element("figcaption", element("h3", chart.title), switch if len(axes) > 1 else None)
    note = element("p", chart.note, class_="note") if chart.note else None
    return element("figure", head, legend(chart.legend), plot, note, _data(chart, steps))


def _step_axis(steps: Sequence[float]) -> Axis:
    """From 0 to the last step: ends that need not be round."""
    first, last = min(0.0, *steps), max(steps)
    return Axis("step", [first, last if last > first else first + 1], float)


def _linear_axis(values: Sequence[float], from_zero: bool) -> Axis:
    return Axis("linear", linear_ticks(min(0.0, *values) if from_zero else min(values), max(values)), float)


def _log_axis(values: Sequence[float]) -> list[Axis]:
    """An axis for the values above 0; none where there are no two different ones. The others are put on its edge."""
    positive = {value for value in values if value > 0}
    if len(positive) < 2:
        return []
    ticks = log_ticks(min(positive), max(positive))
    return [Axis("log", ticks, lambda value: log10(max(value, ticks[0])))]


def _path(line: Line, axis: Axis, steps: Axis) -> Markup:
    """The line; a dot is a line of no length with a round end, which stays round in a stretched drawing."""
    corners = [
        f"{steps.position(step) * WIDTH:.0f} {(1 - axis.position(value)) * HEIGHT:.0f}" for step, value in line.points
    ]
    keys = " ".join(line.keys)
    parts = []
    if line.style != "mark":
        parts.append(element("path", d="M" + "L".join(corners), class_=f"{line.style} c{line.colour}", data_keys=keys))
    if line.style in ("line", "mark"):
        dots = "".join(f"M{corner}h0" for corner in corners)
        kind = "mark" if line.style == "mark" else "dots"
        parts.append(element("path", d=dots, class_=f"{kind} c{line.colour}", data_keys=keys))
    return Markup("".join(parts))


def _grid(axis: Axis) -> Markup:
    rows = "".join(f"M0 {(1 - axis.position(tick)) * HEIGHT:.0f}H{WIDTH}" for tick in axis.ticks)
    return element("path", d=rows, class_="grid")


def _value_ticks(axis: Axis) -> Markup:
    return markup(
        element("span", tick_label(tick), class_=f"y {axis.name}", style=f"bottom:{100 * axis.position(tick):.2f}%")
        for tick in axis.ticks
    )


def _step_ticks(steps: Axis) -> Markup:
    first, last = steps.ticks
    return markup(
        element("span", tick_label(tick), class_="x", style=f"left:{100 * steps.position(tick):.2f}%")
        for tick in linear_ticks(first, last, 6)
        if first <= tick <= last
    )


def _signs(signs: Sequence[Sign], steps: Axis) -> list[Content]:
    """A line for each event; its sign only where there is room for it."""
    shown: list[Content] = []
    last = -1.0
    for event in sorted(signs, key=lambda event: event.step):
        position = steps.position(event.step)
        room = position - last >= LABEL_GAP
        last = position if room else last
        shown.append(
            element(
                "span",
                element("b", event.sign) if room else None,
                class_="sign" if event.colour is None else f"sign c{event.colour}",
                style=f"left:{100 * position:.2f}%",
                title=event.text,
                data_keys=" ".join(event.keys),
            )
        )
    return shown


def legend(entries: Sequence[LegendEntry]) -> Markup | None:
    """Buttons that switch lines on and off, in all charts of the page; None without entries."""
    buttons = [
        element(
            "button",
            element("i", class_=f"{entry.style} {'' if entry.colour is None else f'c{entry.colour}'}".strip()),
            entry.label,
            type="button",
            aria_pressed="true",
            data_key=entry.key,
        )
        for entry in entries
    ]
    return element("div", buttons, class_="legend", role="group", aria_label="lines shown") if buttons else None


def _description(chart: Chart) -> str:
    """What the lines say, for those who do not see them."""
    ends = [(line.label, line.points[-1]) for line in chart.lines if line.style != "raw"]
    return "; ".join(f"{label}: {value:.4g} at step {step:.0f}" for label, (step, value) in ends)


def _data(chart: Chart, steps: Axis) -> Markup:
    """The same points as in the drawing, for the read-out."""
    return json_data(
        {
            "steps": steps.ticks,
            "perEpoch": chart.steps_per_epoch,
            "signs": [[event.step, event.text] for event in chart.signs],
            "lines": [
                {
                    "label": line.label,
                    "colour": line.colour,
                    "keys": line.keys,
                    "x": [step for step, _ in line.points],
                    "y": [_short(point) for point in line.points],
                }
                for line in chart.lines
            ],
        }
    )


def _short(point: Point) -> float:
    """The value to five digits, which is what the read-out shows."""
    return float(f"{point[1]:.5g}")
