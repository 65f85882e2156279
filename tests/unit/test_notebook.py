"""What notebooks and Python show of runs: curves, cards, tables of rows, and messages in the words of Python."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_runs import end, resumed_run, start, training_rows, write_run

import trainlib
from trainlib.errors import RunDirectoryError, UserError
from trainlib.runs.attempt.stop_request import StopFlag
from trainlib.runs.notebook import html
from trainlib.runs.notebook.display import in_notebook
from trainlib.runs.notebook.run import Run
from trainlib.runs.terminal.python_words import to_python_words

HOSTILE = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """Fails for a tag that is not closed, and collects all of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.seen.append(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_curves_are_those_of_the_rows() -> None:
    """Training and validation in each chart, of which the highest value is at the top and the lowest at the bottom."""
    drawn = html.curves(training_rows(100))
    lines = re.findall(r'points="([^"]*)"[^>]*stroke="([^"]*)"', drawn)
    assert [colour for _, colour in lines] == [html.TRAIN, html.VAL] * 2
    corners = [tuple(map(float, corner.split(","))) for points, _ in lines[:2] for corner in points.split()]
    assert {min(y for _, y in corners), max(y for _, y in corners)} == {0, html.HEIGHT}
    assert (min(x for x, _ in corners), max(x for x, _ in corners)) == (0, html.WIDTH)
    Tags(drawn)


@pytest.mark.parametrize("rows", [[], training_rows(1, tested=False), [{"split": "val", "step": 1, "loss": math.nan}]])
def test_too_little_to_draw(rows: list[dict[str, Any]]) -> None:
    assert html.curves(rows) == ""


def test_a_long_run_has_few_points_and_its_last_one() -> None:
    rows = [{"split": "val", "step": step, "loss": 1 / step} for step in range(1, 10_002)]
    (points,) = re.findall(r'points="([^"]*)"', html.curves(rows))
    assert len(points.split()) <= html.POINTS
    assert points.endswith(f"{html.WIDTH},{html.HEIGHT}.0")


def test_a_run_is_a_card(tmp_path: Path) -> None:
    shown = Run(resumed_run(tmp_path / "cats"))._repr_html_()
    for words in ("cats", "completed", "0.7408", "best val/accuracy", "trainlib.load_model(&#x27;cats&#x27;)"):
        assert words in shown
    assert Tags(shown).seen.count("svg") == 2


def test_the_card_of_a_run_that_stopped_says_how_to_go_on(tmp_path: Path) -> None:
    run = Run(write_run(tmp_path / "x", attempts=[start(1, 0), end(1, 5, "stopped", 3, "SIGINT")]))
    assert "goes on from the last checkpoint" in run._repr_html_()
    assert repr(run) == f"Run({str(tmp_path / 'x')!r}, stopped)"


def test_nothing_of_a_run_becomes_html(tmp_path: Path) -> None:
    run = resumed_run(tmp_path / HOSTILE.replace("/", ":"))
    (run / "summary.json").write_text(json.dumps({"best": {"metric": HOSTILE, "value": 1, "step": 1}}))
    shown = Run(run)._repr_html_()
    assert "script" not in Tags(shown).seen


def test_the_history_is_a_table_or_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas

    rows = training_rows(40)
    write_run(tmp_path / "runs/x", rows=rows)
    monkeypatch.chdir(tmp_path)
    run = trainlib.open_run("x")
    table = run.history()
    assert isinstance(table, pandas.DataFrame)
    assert table.loss.tolist() == [row["loss"] for row in rows]
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    assert run.history() == rows


def test_a_run_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run 'x'"):
        trainlib.open_run("x")


OWN_LOSS = "A loss of your own: "


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("`--fresh` begins again, `--name` another run", '`fresh=True` begins again, `"name=OTHER"` another run'),
        ("`--resume` with more epochs", '`resume=""` with more epochs'),
        ("--resume step-00000004: no such checkpoint", 'resume="step-00000004": no such checkpoint'),
        ("choose another `--name`", "choose another `name`"),
        ("or `--name NEW train.epochs=9`", 'or `"name=NEW" train.epochs=9`'),
        (f"{OWN_LOSS}--code FILE.py loss.name=code:NAME or, in Python, fit(loss=...)", f"{OWN_LOSS}fit(loss=...)"),
        ("optimizer.lr: got -1 (command line)", "optimizer.lr: got -1 (given as key=value)"),
    ],
)
def test_messages_are_in_the_words_of_python(told: str, expected: str) -> None:
    error = RunDirectoryError(told)
    to_python_words(error)
    assert str(error) == expected


def test_mistakes_in_a_mapping_are_told_of_the_mapping_and_not_of_the_shipped_file() -> None:
    with pytest.raises(trainlib.ConfigError) as caught:
        trainlib.fit("quickstart", {"optimizer": {"lr": -1}, "trian": 3}, "train.epochs=x", model=None)
    assert str(caught.value).splitlines()[1:] == [
        "  trian: unknown key; did you mean train? (the mapping given in Python)",
        "  optimizer.lr: got -1, must be > 0 (the mapping given in Python)",
        '  train.epochs: got "x", must be a whole number (or null) (given as key=value)',
    ]


@pytest.mark.parametrize(
    "given",
    [{"optimizer.lr": 0.1}, {"optimizer": {"a.b": 1}, "train": {"epochs": 2}}, {"data": {"augment": {"x.y": 1}}}],
)
def test_a_dotted_key_in_a_mapping_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(
        trainlib.ConfigError, match=r"got the key \w+\.\w+: a dotted key is for `key=value`, in a mapping"
    ):
        trainlib.fit("quickstart", given)


def test_this_is_no_notebook() -> None:
    assert not in_notebook()


def test_a_second_interrupt_ends_a_cell_and_not_the_process() -> None:
    flag = StopFlag(keeps_process=True)
    flag.install()
    try:
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        flag.uninstall()
