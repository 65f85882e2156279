"""Tables and lists of facts, and numbers as they are written in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.report.markup import Content, Markup, element

NONE = "—"


@dataclass(frozen=True)
class Cell:
    """A cell of words, which stands on the left; any other content is a number, which stands on the right.

    heads_row   it says what its row is about
    sort_by     what its column is sorted by, where that is not what it shows
    best        the best one of its column
    """

    content: Content
    heads_row: bool = False
    best: bool = False
    is_number: bool = False
    sort_by: float | None = None


def table(headings: Sequence[Content], rows: Sequence[Sequence[Cell | Content]], *, kind: str | None = None) -> Markup:
    """A table that scrolls within itself where the page is narrow; a column's heading stands as its cells do."""
    cells = [[cell if isinstance(cell, Cell) else Cell(cell, is_number=True) for cell in row] for row in rows]
    on_right = [cells[0][column].is_number if cells else False for column in range(len(headings))]
    head = element(
        "tr",
        [
            element("th", heading, scope="col", class_="number" if right else None)
            for heading, right in zip(headings, on_right, strict=True)
        ],
    )
    body = [element("tr", [_cell(cell) for cell in row]) for row in cells]
    whole = element("table", element("thead", head), element("tbody", body), class_=kind)
    return element("div", whole, class_="scroll", tabindex=0, role="region", aria_label="table")


def sortable(headings: Sequence[str], rows: Sequence[Sequence[Cell | Content]]) -> Markup:
    """A table whose headings are buttons that sort it."""
    buttons = [element("button", heading, type="button") for heading in headings]
    first = [[_heading_row(row[0]), *row[1:]] for row in rows]
    return table(buttons, first, kind="sortable")


def facts_list(facts: Mapping[str, Content], kind: str = "facts") -> Markup:
    """Names and values; those without a value are left out."""
    pairs = [
        element("div", element("dt", name), element("dd", value))
        for name, value in facts.items()
        if value not in (None, "", NONE)
    ]
    return element("dl", pairs, class_=kind)


def number(value: float | None, digits: int = 4) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def bytes_text(size: int) -> str:
    """`583 kB`, `1.2 GB`."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size} B"


def duration(seconds: float | None) -> str:
    """`48 s`, `3 min 5 s`, `2 h 7 min`."""
    if seconds is None:
        return NONE
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _cell(cell: Cell) -> Markup:
    kinds = " ".join(kind for kind, holds in (("number", cell.is_number), ("best", cell.best)) if holds)
    if cell.heads_row:
        return element("th", cell.content, scope="row", class_=kinds or None)
    return element("td", NONE if cell.content is None else cell.content, class_=kinds or None, data_value=cell.sort_by)


def _heading_row(cell: Cell | Content) -> Cell:
    return Cell(cell.content if isinstance(cell, Cell) else cell, heads_row=True)
