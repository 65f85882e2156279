"""The page about a data set, made from the facts that `trainlib.training.programs.data.survey_data` writes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from launch.report.page import rendered

MOST_GROUPS = 40


def data_page(name: str, facts: Mapping[str, Any], now: datetime) -> str:
    """Return the whole page. `name` is that of the configuration, `now` is when the page is made."""
    splits = [split for split, count in facts["splits"].items() if count]
    largest = max((row[split] for row in facts["classes"] for split in splits), default=1)
    shown = {"name": name, "facts": facts, "splits": splits, "largest": max(largest, 1), "most": MOST_GROUPS}
    return rendered("data.html.j2", now, "launch data", **shown)
