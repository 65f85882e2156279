"""The facts about a data set as text and tables for the console."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainlib.data.survey.facts import SPLITS, is_leak
from trainlib.runs.terminal.printable import printable
from trainlib.runs.terminal.tables import Column, Table

MOST_CLASSES = 40  # rows of the table of classes; of more, the largest and the smallest are shown
MOST_GROUPS = 10
MOST_SAMPLES = 4  # of a group
NO_NEAR = "near duplicates were not looked for: pip install 'trainlaunch[duplicates]' (imagehash)"


def survey_text(facts: Mapping[str, Any]) -> list[str | Table]:
    """Return all facts in lines and tables."""
    lines: list[str | Table] = [
        f"{facts['source']}: {facts['count']:,} pictures of {len(facts['classes']):,} classes",
        "",
        *_class_table(facts["classes"], facts["splits"]),
        "",
        *_size_lines(facts),
    ]
    if facts["damaged"]:
        lines += ["", f"damaged files: {len(facts['damaged']):,}"]
        lines += [f"  {_sample(sample)}: {printable(sample['reason'])}" for sample in facts["damaged"]]
    lines += ["", *_groups("exact duplicates", facts["duplicates"], "=")]
    if facts["near_duplicates"] is None:
        lines += [NO_NEAR]
    else:
        lines += _groups("near duplicates", facts["near_duplicates"], "~")
    if facts["warnings"]:
        lines += ["", *(f"warning: {printable(warning)}" for warning in facts["warnings"])]
    return lines


def _class_table(classes: Sequence[Mapping[str, Any]], splits: Mapping[str, int]) -> list[str | Table]:
    rows, heading = list(classes), []
    if len(rows) > MOST_CLASSES:
        by_size = sorted(rows, key=lambda row: -row["train"])
        half = MOST_CLASSES // 2
        rows = by_size[:half] + by_size[-half:]
        heading = [f"the {half} largest and the {half} smallest classes (all of them: --json)"]
    names = Column("class", [*(row["name"] for row in rows), "all"])
    shown = [split for split in SPLITS if splits[split]]
    counts = [
        Column(split, [*(f"{row[split]:,}" for row in rows), f"{splits[split]:,}"], on_right=True) for split in shown
    ]
    return [*heading, Table([names, *counts])]


def _size_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return lines on sizes, formats and modes."""
    sizes = facts["sizes"]
    lines = []
    if sizes and sizes["different"] == 1:
        lines.append(f"sizes: all {_size(sizes['smallest'])}")
    elif sizes:
        lines.append(
            f"sizes: {_size(sizes['smallest'])} to {_size(sizes['largest'])}, median {_size(sizes['median'])}, "
            f"{sizes['different']:,} different"
        )
    kinds = {name: ", ".join(f"{key} {count:,}" for key, count in facts[name].items()) for name in ("formats", "modes")}
    return [*lines, *(f"{name}: {counts}" for name, counts in kinds.items())]


def _groups(title: str, groups: Sequence[Mapping[str, Any]], sign: str) -> list[str]:
    if not groups:
        return [f"{title}: none"]
    count = sum(len(group["samples"]) for group in groups)
    leaks = sum(map(is_leak, groups))
    contrary = sum(len(group["classes"]) > 1 for group in groups)
    counts = f"{len(groups):,} groups of {count:,} pictures, {leaks:,} between splits, {contrary:,} between classes"
    lines = [f"{title}: {counts}"]
    for group in groups[:MOST_GROUPS]:
        more = f" {sign} {len(group['samples']) - MOST_SAMPLES:,} more" if len(group["samples"]) > MOST_SAMPLES else ""
        lines.append("  " + f" {sign} ".join(map(_sample, group["samples"][:MOST_SAMPLES])) + more)
    if len(groups) > MOST_GROUPS:
        lines.append(f"  and {len(groups) - MOST_GROUPS:,} more groups (all of them: --json; pictures: --html)")
    return lines


def _sample(sample: Mapping[str, Any]) -> str:
    return f"{sample['split']}: {printable(str(sample['name']))} ({printable(sample['class'])})"


def _size(size: Sequence[int]) -> str:
    return f"{size[0]} x {size[1]}"
