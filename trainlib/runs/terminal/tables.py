"""Tables as text: plain columns for a pipe, rich's table for a terminal."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from trainlib.runs.terminal.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

MAX_RICH_ROWS = 100  # rich takes about 1 ms a row; see docs/decisions/0017-tables-and-page.md
GAP = 2  # spaces between two columns
WRAPPED = 24  # characters: what is wider, such as a sentence, is wrapped before another column gives way
WHOLE_WORD, WORD_PART = 12, 8  # characters: a word up to the first is never broken, a longer one into no less than that

# Rich's styles for the status of a run.
STATUS_STYLES = {
    "completed": "green",
    "running": "cyan",
    "stopped": "yellow",
    "failed": "red",
    "interrupted": "red",
}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    on_right   align the cells to the right, as numbers are
    styles     rich's styles of cells, by their text, for a terminal
    gives_way  a terminal that is too narrow leaves out the column with the highest number first; 0 stays

    What would steer a terminal is escaped.
    """

    title: str
    cells: Sequence[str]
    on_right: bool = False
    styles: Mapping[str, str] = field(default_factory=dict)
    gives_way: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", printable(self.title))
        object.__setattr__(self, "cells", [printable(cell) for cell in self.cells])


@dataclass(frozen=True)
class Table:
    """Columns of equal length, with `str()` as plain text in which no cell is cut or wrapped."""

    columns: Sequence[Column]

    def __str__(self) -> str:
        padded = []
        for column in self.columns:
            texts = [column.title, *column.cells]
            align = str.rjust if column.on_right else str.ljust
            width = max(map(len, texts))
            padded.append([align(text, width) for text in texts])
        return "\n".join((" " * GAP).join(line).rstrip() for line in zip(*padded, strict=True))

    def fitting(self, width: int) -> Table:
        """Return the table with as many of the columns that give way as a terminal of this width has room for."""
        from rich.cells import cell_len

        left = list(self.columns)
        while any(column.gives_way for column in left):
            wide = [max(map(cell_len, [column.title, *column.cells])) for column in left]
            if sum(min(one, WRAPPED) for one in wide) + GAP * (len(left) - 1) <= width:
                break
            left.pop(max(range(len(left)), key=lambda index: left[index].gives_way))
        return Table(left)

    @property
    def num_rows(self) -> int:
        """Number of rows below the headings."""
        return len(self.columns[0].cells)


def terminal() -> Console | None:
    """Return rich's console on standard output, or None where that is no terminal."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)


def show(*parts: str | Table) -> None:
    """Print lines of text and tables to standard output, one below the other.

    On a terminal lines are wrapped between words, and rich draws the tables: headings in bold, cells in their styles,
    columns that give way left out, text that is too wide wrapped within its column. Plain columns are printed on a
    pipe, of tables with more than `MAX_RICH_ROWS` rows, and of those that even wrapped are too wide for the terminal.
    """
    console = terminal()
    for part in parts:
        if isinstance(part, str):
            part = printable(part, keep="\n")
        if console is None:
            print(part)
        elif isinstance(part, str):
            print(_wrapped(part, console.width))
        else:
            part = part.fitting(console.width)
            drawn = _rich_table(part, console.width) if part.num_rows <= MAX_RICH_ROWS else None
            console.print(drawn) if drawn is not None else print(part)


def hang(head: str, text: str, width: int | None) -> str:
    """Return `head` and `text`, the text's further lines indented to where it begins.

    Words are not broken, so that a path that is too long for a line can still be copied.

    width   characters a line; None leaves the text in one line
    """
    head, text = printable(head), printable(" ".join(text.split("\n")))
    if width is None:
        return head + text
    return _wrapped(" ".join(text.split()), width, initial_indent=head, subsequent_indent=" " * len(head))


def _wrapped(text: str, width: int, **indents: str) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False, **indents)  # type: ignore[arg-type]


def _rich_table(table: Table, width: int) -> RichTable | None:
    """Return the table as rich's, at most `width` characters wide; None where its columns cannot be made so narrow."""
    from rich.table import Table as RichTable
    from rich.text import Text

    widths = _column_widths(table, width)
    if widths is None:
        return None
    drawn = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for column, column_width in zip(table.columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.on_right else "left"
        drawn.add_column(column.title, justify=justify, overflow="fold", width=column_width)
    styled = [[Text(cell, column.styles.get(cell, "")) for cell in column.cells] for column in table.columns]
    for row in zip(*styled, strict=True):
        drawn.add_row(*row)
    return drawn


def _column_widths(table: Table, width: int) -> list[int] | None:
    """Return a width for each column, together at most `width`; None where that takes breaking short words.

    The column with the most room gives first: one with long words (a name) a character, another (a time) all its room,
    as it has to be wrapped anyway. What that leaves over goes back to the column that gave most. Rich by itself would
    break "completed" in two where a name beside it is long.
    """
    from rich.cells import cell_len

    whole, least, longest = [], [], []
    for column in table.columns:
        whole.append(max(map(cell_len, [column.title, *column.cells])))
        longest_word = max((cell_len(word) for cell in column.cells for word in cell.split()), default=0)
        longest.append(longest_word)
        least.append(max(cell_len(column.title), longest_word if longest_word <= WHOLE_WORD else WORD_PART))
    widths = list(whole)
    missing = sum(widths) + GAP * (len(widths) - 1) - width
    while missing > 0:
        index = max(range(len(widths)), key=lambda index: widths[index] - least[index])
        if widths[index] <= least[index]:
            return None
        given = 1 if longest[index] > WHOLE_WORD else widths[index] - least[index]
        widths[index] -= given
        missing -= given
    most = max(range(len(widths)), key=lambda index: whole[index] - widths[index])
    widths[most] = min(whole[most], widths[most] - missing)
    return widths
