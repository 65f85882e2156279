"""What was measured, as Markdown and as a picture."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.arms import BARE, OURS
from bench.intervals import Interval, bootstrap, ratio

Seconds = Mapping[str, Sequence[float]]
PACKAGES = ("torch", "torchvision", "accelerate", "lightning")


def machine(threads: int) -> str:
    """The machine and the versions, in a line."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} x {cpu}, {threads} threads; load {load:.1f} at the start; "
        f"Python {platform.python_version()}, {', '.join(found)}"
    )


def speed_table(seconds: Seconds, images: int) -> str:
    """images   of a round"""
    rows = ["| arm | images/s | ours is faster by (95 % interval) |", "|---|---:|---|"]
    for name, times in sorted(seconds.items(), key=lambda item: statistics.median(item[1])):
        faster = "" if name == OURS else _times(ratio(times, seconds[OURS]))
        rows.append(f"| {name} | {images / statistics.median(times):,.0f} | {faster} |")
    return "\n".join(rows)


def overhead_table(seconds: Seconds, steps: int) -> str:
    """Microseconds of a step above the bare loop's; of the median over the rounds."""
    over = {
        name: bootstrap([(a - b) / steps * 1e6 for a, b in zip(times, seconds[BARE], strict=True)])
        for name, times in seconds.items()
        if name != BARE
    }
    rows = ["| arm | over the bare loop, us a step (95 % interval) |", "|---|---|"]
    for name, interval in sorted(over.items(), key=lambda item: item[1].median):
        rows.append(f"| {name} | {interval.median:,.0f} ({interval.low:,.0f} to {interval.high:,.0f}) |")
    return "\n".join(rows)


def seconds_table(seconds: Seconds, baseline: str, unit: str) -> str:
    """unit   what takes these seconds"""
    rows = [f"| | seconds {unit} | of {baseline} (95 % interval) |", "|---|---:|---|"]
    for name, times in seconds.items():
        of = "" if name == baseline else _times(ratio(times, seconds[baseline]))
        rows.append(f"| {name} | {statistics.median(times):.3f} | {of} |")
    return "\n".join(rows)


def plot(seconds: Seconds, images: int, path: Path) -> None:
    """Images a second of every arm, with the rounds as dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(seconds, key=lambda name: -statistics.median(seconds[name]))
    figure = Figure(figsize=(9, 0.4 * len(names) + 1), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = ["#d55e00" if name == OURS else "#0072b2" for name in names]
    axes.barh(names, [images / statistics.median(seconds[name]) for name in names], color=colours, alpha=0.8)
    for row, name in enumerate(names):
        axes.plot([images / time for time in seconds[name]], [row] * len(seconds[name]), ".", color="black", ms=3)
    axes.set_xlabel("images/s")
    figure.savefig(path)


def _times(interval: Interval) -> str:
    return f"{interval.median:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
