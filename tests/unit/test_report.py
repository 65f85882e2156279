"""`launch report`: the page as text. Its look is tested in tests/docs/test_report_browser.py."""

from __future__ import annotations

import json
import re
import time
import webbrowser
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from locks import owning
from paths import REPOSITORY
from report_runs import START, end, evaluation, resumed_run, start, training_rows, write_run

from launch.cli import main
from launch.report.facts.run_facts import read_facts
from launch.report.page import page, templates

NOW = START + timedelta(hours=1)
NASTY = "<script>alert(1)</script>"


class Reader(HTMLParser):
    """The elements of a page, each with its attributes and the text directly in it."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def report_of(*directories: Path) -> str:
    return page([read_facts(directory) for directory in directories], NOW)


# The page


def test_one_run_is_shown_whole(tmp_path: Path) -> None:
    run = resumed_run(tmp_path / "cats")
    reader = Reader(report_of(run))
    assert [
        text for text in reader.texts if text in ("Loss", "Accuracy", "Learning rate", "Throughput, images per second")
    ]
    for shown in (
        "cats",
        "completed",
        "0.7408",
        "2 min 0 s",
        "SIGTERM",
        "step-00000060",
        "583 kB",
        "launch run x",
        "node1",
    ):
        assert shown in reader.text, shown
    assert reader.count("figure") == 4
    assert reader.count("img") == 2
    headings = [attributes.get("scope") for name, attributes in reader.elements if name == "th"]
    assert headings
    assert set(headings) == {"col", "row"}
    assert all(attributes["alt"] for name, attributes in reader.elements if name == "img")


def test_mistakes_come_with_their_files_and_pairs_of_classes(tmp_path: Path) -> None:
    text = report_of(resumed_run(tmp_path / "cats"))
    assert "Mistakes, the largest loss first" in text
    for shown in ("photos/<wbr>test/<wbr>ship/<wbr>2.jpg", "dog, taken for cat (1)", "ship, taken for cat (1)"):
        assert shown in text
    older = evaluation([[3, 1], [2, 4]], ["a", "b"])
    older["mistakes"] = [{k: v for k, v in one.items() if k not in ("loss", "file")} for one in older["mistakes"]]
    text = report_of(write_run(tmp_path / "older", evaluations=[older]))
    assert "Mistakes, the most confident first" in text
    assert '<span class="path">' not in text


@pytest.mark.parametrize("number", [5, 6])
def test_top5_is_told_of_more_than_five_classes(number: int, tmp_path: Path) -> None:
    confusion = [[9 if row == column else 1 for column in range(number)] for row in range(number)]
    run = write_run(tmp_path / "run", evaluations=[evaluation(confusion, [*"abcdef"][:number])])
    assert ("top-5 accuracy" in report_of(run)) == (number == 6)


def test_attempts_that_failed_before_the_first_step_are_folded_away(tmp_path: Path) -> None:
    attempts = [start(1, 0), end(1, 5, "failed", 0, "UserError: a typo"), start(2, 9), end(2, 90, "stopped", 70)]
    text = report_of(write_run(tmp_path / "run", attempts=attempts, rows=training_rows(60, tested=False)))
    shown, _, folded = text.partition("<details>\n<summary>1 attempt that failed before the first step</summary>")
    assert "UserError: a typo" in folded.partition("</details>")[0]
    assert "a typo" not in shown
    assert "↻" not in re.sub(r"<p class=.note.>.*?</p>", "", text, flags=re.DOTALL)


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = [
        resumed_run(tmp_path / name, level=level, seed=level) for name, level in (("a", 2.0), ("b", 0.5), ("c", 1.0))
    ]
    text = report_of(*runs)
    reader = Reader(text)
    assert "3 runs compared" in reader.text
    names = re.findall(r'<th scope="row"><i class="swatch c\d"></i>([abc])</th>', text)
    assert names == ["b", "c", "a"]  # less loss, more accuracy
    assert re.search(r"<code>seed</code></th>.*?0\.5.*?1\.0|<code>seed</code></th>.*?0\.5.*?1<", text)


@pytest.mark.parametrize("number", [1, 2])
def test_nothing_that_a_run_holds_can_become_code(tmp_path: Path, number: int) -> None:
    """Every name is as hostile as a file system allows. The page has as many scripts as one of a harmless run."""

    def runs(name: str, word: str) -> list[Path]:
        directories = []
        for index in range(number):
            run = resumed_run(tmp_path / f"{name}{index}", classes=[word, f'{word}" onload="x', "ship"], note=word)
            lines = [start(1, 0, host=word), end(1, 3, "failed", 9, word)]
            (run / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            (run / "environment.json").write_text(json.dumps({"command": [word], "versions": {word: word}}))
            directories.append(run)
        return directories

    hostile, harmless = (
        Reader(report_of(*runs(name, word))) for name, word in (("<script>&\"'", NASTY), ("harmless", "word"))
    )
    page_of_hostile, page_of_harmless = (  # but for places at which a path may be broken
        [name for name, _ in each.elements if name != "wbr"] for each in (hostile, harmless)
    )
    assert page_of_hostile == page_of_harmless
    assert not [attributes for _, attributes in hostile.elements if "onload" in attributes]
    assert NASTY in hostile.text


def test_templates_escape_whatever_they_print() -> None:
    """In text, in attributes, through macros and as data; no template marks anything as safe or turns that off."""
    word = "</script><b>&\"'\u2028"
    made = templates().from_string(
        '{% from "macros.html.j2" import badge %}<a title="{{ word }}">{{ word }}</a>{{ badge(word) }}{{ nothing }}'
    )
    escaped = "&lt;/script&gt;&lt;b&gt;&amp;&#34;&#39;\\u2028"
    assert made.render(word=word, nothing=None) == (
        f'<a title="{escaped}">{escaped}</a><span class="badge {escaped}">{escaped}</span>—'
    )
    data = templates().from_string("{{ {word: 1.5} | tojson }}").render(word=word)
    assert not set("<>&'\u2028") & set(data)
    assert json.loads(data) == {word: 1.5}
    names = templates().list_templates(extensions=["j2"])
    assert len(names) == 8
    for name in names:
        source = (REPOSITORY / "launch/report/templates" / name).read_text()
        assert not re.search(r"\bsafe\b|autoescape", source), name


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    """No element refers to anything but data, and the policy allows no more."""
    reader = Reader(report_of(resumed_run(tmp_path / "x")))
    links = [attributes[key] or "" for _, attributes in reader.elements for key in ("src", "href") if key in attributes]
    assert len(links) == 3
    assert all(link.startswith("data:") for link in links)
    policies = [each["content"] for _, each in reader.elements if each.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none'; img-src data:;")
    assert "http" not in " ".join(reader.texts).replace("http-equiv", "")


def test_a_run_without_an_evaluation_says_how_to_get_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "x", rows=training_rows(20))
    assert "launch eval x" in Reader(report_of(run)).text
    (run / "evaluation-test.json").write_text('{"split": "test"')
    assert "evaluation-test.json cannot be read" in Reader(report_of(run)).text


def test_what_is_there_of_an_unfinished_run_is_shown(tmp_path: Path) -> None:
    """New, running, failed, with a torn row and one that is not finite, with hardly any file at all."""
    new = write_run(tmp_path / "new")
    assert "This run has not begun" in Reader(report_of(new)).text
    bare = tmp_path / "bare"
    bare.mkdir()
    assert Reader(report_of(bare)).count("figure") == 0
    running = write_run(tmp_path / "running", attempts=[start(1, 0)], rows=training_rows(3, tested=False))
    with (running / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "split": "train", "scope": "step", "loss": null, "accuracy": 0.5}\n{"step": 5, "lo')
    with owning(running):
        assert "still going" in Reader(report_of(running)).text
    failed = [start(1, 0), end(1, 9, "failed", 3, "NonFiniteError: loss is nan")]
    (running / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in failed))
    assert "This run failed. What it wrote before that is shown. NonFiniteError" in re.sub(
        " +", " ", Reader(report_of(running)).text
    )


def test_values_of_another_type_are_left_out(tmp_path: Path) -> None:
    """One damaged run must not take the page, or the list of all runs, from the others."""
    best = {"metric": "val/accuracy", "value": None, "step": 60}
    rows = [*training_rows(20), {"step": "x", "split": "train", "scope": "step"}, {"split": "odd"}]
    run = write_run(tmp_path / "x", rows=rows, summary={"status": "completed", "best": best, "images_per_second": None})
    assert "best:" not in Reader(report_of(run)).text
    assert read_facts(run).run.newest_metrics["step"] == 20


@pytest.mark.slow
def test_a_long_run_is_shown_fast_and_small(tmp_path: Path) -> None:
    """100,000 rows: under 3 MB, and in less time than parsing them eight times takes on this machine at this hour."""
    run = write_run(tmp_path / "x", attempts=[start(1, 0)], rows=training_rows(91_000))
    before = time.process_time()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    parsed = time.process_time()
    assert len(rows) > 100_000
    text = report_of(run)
    assert time.process_time() - parsed < 8 * (parsed - before)
    assert len(text.encode()) < 3_000_000


def test_a_thousand_classes_are_listed_without_a_matrix(tmp_path: Path) -> None:
    size = 1000
    confusion = [[5 if row == column else int(column == 0) for column in range(size)] for row in range(size)]
    whole = evaluation(confusion, [f"class {index}" for index in range(size)]) | {"mistakes": []}
    text = report_of(write_run(tmp_path / "x", evaluations=[whole]))
    assert 'class="confusion' not in text
    assert "There are 1000 classes" in text
    assert len(text.encode()) < 1_000_000


# The command


def test_where_the_page_goes(
    workdir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    for name in ("a", "b"):
        resumed_run(workdir / "runs" / name)
    assert main(["report", "a"]) == 0
    assert main(["report", "a", "b", "a"]) == 0
    assert main(["report", "runs/b", "--output", "x.html", "--open"]) == 0
    assert capsys.readouterr().out == "runs/a/report.html\nreport.html\nx.html\n"
    assert opened == [(workdir / "x.html").as_uri()]
    assert "2 runs compared" in (workdir / "report.html").read_text()
    assert not list(workdir.rglob("*.tmp"))


def test_mistakes_are_told(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resumed_run(workdir / "runs" / "cats")
    assert main(["report", "cat"]) == 2
    assert main(["report", "cats", "--output", "missing/x.html"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "did you mean cats?" in errors[0]
    assert errors[1] == (
        "error: missing/x.html: No such file or directory; name a file that can be written with --output"
    )
