"""Tables on a pipe and on a terminal; the terminal is a real one, of the kernel's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from paths import REPOSITORY
from terminals import on_terminal

from trainlib.runs.terminal.tables import MAX_RICH_ROWS, Column, Table, hang, show

STYLE = re.compile(r"\x1b\[[0-9;]*m")
PROGRAM = """
from trainlib.runs.terminal.tables import Column, Table, show
rows = {rows}
names = ["short", *(f"a-name-of-a-run-that-is-long-{{i}}" for i in range(rows - 1))]
states = Column("STATUS", ["failed"] * rows, styles={{"failed": "red"}})
times = Column("STARTED", ["2030-01-02 03:04:05"] * rows)
show(Table([Column("NAME", names), states, times]), "the   end of a rather long text, as it is")
"""


def printed(width: int, rows: int = 2, environment: Mapping[str, str] = MappingProxyType({})) -> str:
    """What the program prints on a pseudo-terminal of this width."""
    variables = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(width), **environment}
    for name in {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"} - environment.keys():
        variables.pop(name, None)
    words = [sys.executable, "-c", PROGRAM.format(rows=rows)]
    code, text = on_terminal(words, variables, REPOSITORY)
    assert code == 0, text
    return text


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in STYLE.sub("", text).splitlines()]


def test_a_pipe_gets_plain_columns(capsys: pytest.CaptureFixture[str]) -> None:
    names = Column("NAME", ["x", "a name that is longer than any terminal is wide" * 9])
    show(Table([names, Column("STEP", ["5", "1000"], on_right=True), Column("", ["", "end"])]), "text")
    width = len(names.cells[1])
    assert capsys.readouterr().out.splitlines() == [
        f"{'NAME':<{width}}  STEP",
        f"{'x':<{width}}     5",
        f"{names.cells[1]}  1000  end",
        "text",
    ]


def test_a_wide_terminal_gets_the_same_columns_with_styles() -> None:
    text = printed(100)
    assert lines_of(text) == [
        "NAME                            STATUS  STARTED",
        "short                           failed  2030-01-02 03:04:05",
        "a-name-of-a-run-that-is-long-0  failed  2030-01-02 03:04:05",
        "the   end of a rather long text, as it is",
    ]
    assert "\x1b[1mNAME" in text
    assert "\x1b[31mfailed" in text


def test_on_a_narrow_terminal_long_names_are_broken_first_and_short_words_never() -> None:
    text = printed(40)
    assert lines_of(text) == [
        "NAME                  STATUS  STARTED",
        "short                 failed  2030-01-02",
        "                              03:04:05",
        "a-name-of-a-run-that  failed  2030-01-02",
        "-is-long-0                    03:04:05",
        "the   end of a rather long text, as it",
        "is",
    ]


@pytest.mark.parametrize(
    ("width", "left"),
    [
        (62, ["NAME", "STEP", "STARTED", "PROBLEM"]),
        (61, ["NAME", "STARTED", "PROBLEM"]),
        (54, ["NAME", "PROBLEM"]),
        (5, ["NAME", "PROBLEM"]),
    ],
)
def test_columns_that_give_way_are_left_out_before_others_are_wrapped(width: int, left: list[str]) -> None:
    """A sentence is wrapped in any case, and counts as 24 characters: 5 + 5 + 19 + 24 and three gaps are 59."""
    step = Column("STEP", ["12345"], gives_way=2)
    started = Column("STARTED", ["2030-01-02 03:04:05"], gives_way=1)
    table = Table([Column("NAME", ["train-me"]), step, started, Column("PROBLEM", ["a word " * 20])])
    assert [column.title for column in table.fitting(width).columns] == left


@pytest.mark.parametrize(("width", "rows"), [(20, 2), (40, MAX_RICH_ROWS + 1)], ids=["narrow", "long"])
def test_what_does_not_fit_or_is_long_is_plain(width: int, rows: int) -> None:
    """Nothing is cut: the terminal itself wraps the lines. Rich would take long for many rows."""
    lines = printed(width, rows).splitlines()
    assert lines[1 + rows].startswith("the   end")
    assert lines[1].split() == ["short", "failed", "2030-01-02", "03:04:05"]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_they_are_not_wanted(name: str, value: str) -> None:
    """Of NO_COLOR, bold letters are no colour."""
    text = printed(80, environment={name: value})
    assert "31m" not in text
    assert (STYLE.search(text) is None) == (name == "TERM")
    assert "failed  2030-01-02 03:04:05" in text


def test_rich_is_imported_for_a_terminal_alone(tmp_path: Path) -> None:
    program = f"{PROGRAM.format(rows=2)}\nimport sys\nprint(sorted(name for name in sys.modules if name == 'rich'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_hanging_lines_break_between_words_alone() -> None:
    path = "/a/path/that/is/longer/than/the/line"
    assert hang("  log  ", f"see {path}, please do", 20) == f"  log  see\n       {path},\n       please do"
    assert hang("head: ", "as  it is", None) == "head: as  it is"
