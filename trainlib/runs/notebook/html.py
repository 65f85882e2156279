"""Curves and bars as HTML, from the rows of a run. Pure: from values to text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any

from trainlib.runs.terminal.printable import printable

WIDTH, HEIGHT = 300, 84  # of a chart, in pixels
POINTS = 200  # of a line, at most
TRAIN, VAL = "#3b82c4", "#d9763f"  # seen on white and on black
SOFT = "opacity:.65"
_COLOURS = {
    "completed": "#2e9e5b",
    "running": TRAIN,
    "stopped": "#c08a1e",
    "failed": "#d4564a",
    "interrupted": "#d4564a",
}

Rows = Sequence[Mapping[str, Any]]


def text(value: object) -> str:
    """Return a value as text that is no HTML, without characters that do not show."""
    return escape(printable(str(value)))


def block(*parts: str) -> str:
    """Return parts below one another, in one frame."""
    return (
        '<div style="font:13px/1.6 system-ui,sans-serif;max-width:660px;font-variant-numeric:tabular-nums">'
        f"{''.join(parts)}</div>"
    )


def badge(status: str) -> str:
    """Return the state of a run, in its colour."""
    colour = _COLOURS.get(status, "#888")
    return (
        f'<span style="color:{colour};border:1px solid {colour};border-radius:99px;padding:0 8px;font-size:12px">'
        f"{text(status)}</span>"
    )


def facts(values: Mapping[str, object]) -> str:
    """Return names and values side by side, without those that are None or empty."""
    cells = [
        f'<div style="margin-right:28px"><small style="{SOFT}">{text(name)}</small><br/><b>{text(value)}</b></div>'
        for name, value in values.items()
        if value not in (None, "")
    ]
    return f'<div style="display:flex;flex-wrap:wrap;margin:8px 0">{"".join(cells)}</div>'


def bar(done: int, total: int) -> str:
    """Return a bar that is filled so far."""
    percent = 100 * min(max(done / total, 0.0), 1.0) if total else 0.0
    return (
        f'<div role="progressbar" aria-valuemin="0" aria-valuemax="{total}" aria-valuenow="{done}" '
        'style="height:6px;border-radius:3px;overflow:hidden;background:rgba(128,128,128,.25);margin:6px 0">'
        f'<div style="width:{percent:.1f}%;height:100%;background:{TRAIN}"></div></div>'
    )


def curves(rows: Rows) -> str:
    """Return the charts of loss and accuracy, training and validation in each; empty without two rows of one kind."""
    charts = [chart for name in ("loss", "accuracy") if (chart := _chart(name, rows))]
    return f'<div style="display:flex;flex-wrap:wrap;gap:8px 24px">{"".join(charts)}</div>' if charts else ""


def _chart(name: str, rows: Rows) -> str:
    epochs = _points(name, (row for row in rows if row.get("split") == "train" and row.get("scope") == "epoch"))
    steps = _points(name, (row for row in rows if row.get("split") == "train" and row.get("scope") == "step"))
    lines = {"train": max(epochs, steps, key=len), "validation": _points(name, _of_validation(rows))}
    lines = {label: points for label, points in lines.items() if len(points) > 1}
    if not lines:
        return ""
    every = [point for points in lines.values() for point in points]
    first, last = min(step for step, _ in every), max(step for step, _ in every)
    low, high = min(value for _, value in every), max(value for _, value in every)
    across, up = WIDTH / ((last - first) or 1), HEIGHT / ((high - low) or 1)
    drawn, told = [], []
    for label, points in lines.items():
        colour = TRAIN if label == "train" else VAL
        corners = " ".join(f"{(step - first) * across:.0f},{(high - value) * up:.1f}" for step, value in points)
        drawn.append(f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        told.append(f'<span style="color:{colour}">{label} {points[-1][1]:.4f}</span>')
    box = f'viewBox="0 -3 {WIDTH} {HEIGHT + 6}" width="{WIDTH}" height="{HEIGHT + 6}"'
    described = f"{name} from step {first} to {last}, between {low:.4g} and {high:.4g}"
    return (
        f'<div><div style="font-size:12px"><b>{name}</b> {" ".join(told)}</div>'
        f'<svg {box} role="img" aria-label="{described}" style="max-width:100%">'
        f'<path d="M0 0H{WIDTH}M0 {HEIGHT}H{WIDTH}" stroke="rgba(128,128,128,.3)"/>{"".join(drawn)}</svg></div>'
    )


def _of_validation(rows: Rows) -> Iterable[Mapping[str, Any]]:
    return (row for row in rows if row.get("split") == "val")


def _points(name: str, rows: Iterable[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return (step, value) of the rows with a finite value, thinned out evenly to POINTS, the last one among them."""
    found = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float) and isfinite(row[name])]
    stride = -(-len(found) // POINTS)
    return found if stride <= 1 else found[::-1][::stride][::-1]
