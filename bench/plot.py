"""Plot the images a second of every arm."""

from __future__ import annotations

import statistics
from pathlib import Path

from bench.arms import BARE, FAST, FLOOR, OURS
from bench.intervals import Seconds

# Of Okabe and Ito's colours, which people with any colour vision tell apart.
KINDS = {
    "ours": "#d55e00",
    "limits": "#999999",
    "fed our tensors": "#009e73",
    "tuned": "#56b4e9",
    "as documented": "#0072b2",
}


def kind(name: str) -> str:
    if name in (OURS, FAST):
        return "ours"
    if name in (BARE, FLOOR):
        return "limits"
    if ", tensors" in name:
        return "fed our tensors"
    return "tuned" if name.endswith(", tuned") else "as documented"


def plot(seconds: Seconds, images: int, path: Path) -> None:
    """Draw a row for each arm, the fastest on top: the median as a bar, each round as a dot.

    images   of a round
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    names = sorted(seconds, key=lambda name: -statistics.median(seconds[name]))
    speeds = {name: [images / time for time in seconds[name]] for name in names}
    figure = Figure(figsize=(9, 0.34 * len(names) + 1.2), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    medians = [images / statistics.median(seconds[name]) for name in names]
    axes.barh(names, medians, height=0.7, color=[KINDS[kind(name)] for name in names], alpha=0.85)
    for row, name in enumerate(names):
        axes.plot(speeds[name], [row] * len(speeds[name]), "o", color="black", alpha=0.45, ms=3, mew=0)
    end = max(max(values) for values in speeds.values())
    for row, median in enumerate(medians):
        axes.text(end * 1.02, row, f"{median:,.0f}", va="center", ha="left", fontsize=9)
    axes.get_yticklabels()[names.index(OURS)].set_fontweight("bold")
    axes.set_xlim(0, end * 1.1)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("images/s: the median over the rounds, and each round")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    shown = [label for label in KINDS if label in {kind(name) for name in names}]
    figure.legend(
        handles=[Patch(color=KINDS[label], label=label) for label in shown], loc="outside upper center", ncols=5
    )
    figure.savefig(path)
