"""The results as Markdown tables, kept in a folder and written again after every part of the benchmark."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.arms import BARE, OURS
from bench.intervals import Interval, Seconds, bootstrap, ratio

PACKAGES = ("torch", "torchvision", "accelerate", "lightning", "timm")


class Results:
    """A folder with table.md and seconds.json, written again after each part; stdout gets the same tables."""

    def __init__(self, folder: Path, heading: str):
        folder.mkdir(parents=True)
        self.folder = folder
        self.measured: dict[str, Seconds] = {}
        self._table = f"{time.strftime('%Y-%m-%d')}, {heading}\n"
        print(self._table, flush=True)

    def add(self, part: str, table: str, seconds: Seconds | None = None) -> None:
        if seconds is not None:
            self.measured[part] = seconds
            (self.folder / "seconds.json").write_text(json.dumps(self.measured, indent=1))
        print(f"### {part}\n\n{table}\n", flush=True)
        self._table += f"\n### {part}\n\n{table}\n"
        (self.folder / "table.md").write_text(self._table)


def machine(threads: int, packages: tuple[str, ...] = PACKAGES) -> str:
    """Return one line about the machine and the versions of packages."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    found = []
    for package in packages:
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
    """Return the table of images a second.

    images   images of a round
    """
    rows = ["| arm | images/s | ours is faster by (95 % interval) |", "|---|---:|---|"]
    for name, times in sorted(seconds.items(), key=lambda item: statistics.median(item[1])):
        faster = "" if name == OURS else times_as_fast(ratio(times, seconds[OURS]))
        rows.append(f"| {name} | {images / statistics.median(times):,.0f} | {faster} |")
    return "\n".join(rows)


def overhead_table(seconds: Seconds, steps: int) -> str:
    """Return the table of microseconds by which a step takes longer than the bare loop's, the median of the rounds."""
    over = {
        name: bootstrap([(a - b) / steps * 1e6 for a, b in zip(times, seconds[BARE], strict=True)])
        for name, times in seconds.items()
        if name != BARE
    }
    rows = ["| arm | over the bare loop, us a step (95 % interval) |", "|---|---|"]
    for name, interval in sorted(over.items(), key=lambda item: item[1].median):
        rows.append(f"| {name} | {interval.median:,.0f} ({interval.low:,.0f} to {interval.high:,.0f}) |")
    return "\n".join(rows)


def seconds_table(seconds: Seconds, baseline: str, unit: str, per: float = 1.0) -> str:
    """Return the table of seconds, and of ratios to the baseline.

    unit   what takes these seconds, after division by `per`
    """
    rows = [f"| | seconds {unit} | of {baseline} (95 % interval) |", "|---|---:|---|"]
    for name, times in seconds.items():
        of = "" if name == baseline else times_as_fast(ratio(times, seconds[baseline]))
        rows.append(f"| {name} | {statistics.median(times) / per:.4f} | {of} |")
    return "\n".join(rows)


def rows_table(columns: tuple[str, ...], rows: Mapping[str, tuple[str, ...]]) -> str:
    """Return a Markdown table; the first column holds the names of the rows."""
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join((name, *cells))} |" for name, cells in rows.items())])


def times_as_fast(interval: Interval) -> str:
    return f"{interval.median:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
