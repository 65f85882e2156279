"""The page about labels that are probably wrong."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from launch.report.page import rendered
from launch.sweep.repeated.label_errors import DoubtfulLabel

MOST = 200  # that are shown


def labels_page(name: str, count: int, doubtful: Sequence[DoubtfulLabel], now: datetime) -> str:
    """Return the whole page. `name` is that of the sweep; `count` is how many samples were looked at."""
    shown = {"name": name, "count": count, "doubtful": doubtful, "most": MOST}
    return rendered("labels.html.j2", now, "launch labels", **shown)
