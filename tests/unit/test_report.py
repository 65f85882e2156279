"""`launch report`: the facts, the arithmetic of the charts, and the page as text. What it looks like is tested in
test_report_browser."""

from __future__ import annotations

import json
import re
import time
import webbrowser
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_runs import START, end, evaluation, moment, resumed_run, start, training_rows, write_run
from test_launch_runs import holding_lock

from launch.cli import main
from launch.report.chart import Chart, Line, figure
from launch.report.compare import config_differences, ranking
from launch.report.curves import charts_of
from launch.report.facts import read_facts
from launch.report.history import attempts_of, events_of, jobs_of
from launch.report.markup import element, json_data
from launch.report.page import page
from launch.report.series import linear_ticks, log_ticks, smoothed, thinned, tick_label

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


# Series and axes


def test_thinning_keeps_the_ends_and_every_extreme() -> None:
    """The oracle looks at each bucket by itself, with numpy."""
    values = np.random.default_rng(1).normal(size=20_000)
    values[12_345] = 50.0
    steps = np.arange(1, 20_001)
    kept = thinned(list(zip(steps.tolist(), values.tolist(), strict=True)), 300)
    buckets = ((steps - 1) * (300 / 19_999)).astype(int)
    expected = {0, 19_999}
    for bucket in np.unique(buckets):
        within = np.flatnonzero(buckets == bucket)
        expected |= {int(within[values[within].argmin()]), int(within[values[within].argmax()])}
    assert kept == [(int(steps[index]), values[index]) for index in sorted(expected)]
    assert thinned(kept[:600], 300) == kept[:600]


def test_smoothing_is_the_mean_of_the_neighbours() -> None:
    values = np.random.default_rng(2).normal(size=101)
    ours = smoothed(list(enumerate(values.tolist())), 9)
    theirs = [values[max(0, index - 4) : index + 5].mean() for index in range(101)]
    np.testing.assert_allclose([value for _, value in ours], theirs, rtol=1e-12, atol=1e-12)
    assert [step for step, _ in ours] == list(range(101))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.13, 2.4, [0, 0.5, 1, 1.5, 2, 2.5]),
        (0, 939, [0, 200, 400, 600, 800, 1000]),
        (0.5, 0.5, [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3e-5, 2e-5, [-3e-5, -2e-5, -1e-5, 0, 1e-5, 2e-5]),
    ],
)
def test_linear_ticks(low: float, high: float, expected: list[float]) -> None:
    assert linear_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.03, 2.4, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5]),
        (1e-6, 0.1, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]),
        (0.5, 0.6, [0.5, 1]),
        (1, 1, [1, 2]),
    ],
)
def test_log_ticks(low: float, high: float, expected: list[float]) -> None:
    assert log_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("power", range(-12, 12))
def test_ticks_span_any_range(power: int) -> None:
    for mantissa in (1, 1.7, 2.5, 9.99):
        low, high = 10.0**power, mantissa * 1.5 * 10.0 ** (power + 2)
        for ticks in (linear_ticks(low, high), log_ticks(low, high)):
            assert ticks == sorted(set(ticks))
            assert ticks[0] <= low * 1.001
            assert ticks[-1] >= high * 0.999
            assert 2 <= len(ticks) <= 9


def test_tick_labels() -> None:
    values = [0, 0.25, 1000, 12_500, 2_500_000, 1e-5, -2.5e-7, 0.001]
    assert [tick_label(value) for value in values] == ["0", "0.25", "1000", "12.5k", "2.5M", "1e-5", "-2.5e-7", "0.001"]


def test_a_line_is_drawn_where_its_values_are() -> None:
    """Corners of the path against positions that are computed here from the axis: 0 to 4, and 1 to 5 (powers)."""
    line = Line("x", [(0, 1), (50, 3), (100, 4)], "smooth", 0, ("key",))
    text = figure(Chart("Loss", [line], from_zero=True))
    linear, log = re.findall(r'<path d="M([^"]*)" class="smooth c0" data-keys="key">', text)
    assert linear == "0 750L1000 250L2000 0"
    top = np.log(5)
    assert log == f"0 1000L1000 {1000 * (1 - np.log(3) / top):.0f}L2000 {1000 * (1 - np.log(4) / top):.0f}"


def test_a_logarithmic_axis_is_one_down_to_its_lowest_tick() -> None:
    """Equal ratios are equal distances, below the lowest value too; what has no logarithm lies on the edge."""
    text = figure(Chart("Loss", [Line("x", [(0, 0.3), (1, 0.0), (2, 4.0)], "smooth", 0, ())]))
    ticks = re.findall(r'class="y log" style="bottom:([\d.]*)%">([^<]*)<', text)
    values, places = np.array([float(label) for _, label in ticks]), np.array([float(place) for place, _ in ticks])
    assert values.tolist() == [0.2, 0.5, 1, 2, 5]
    np.testing.assert_allclose(places, 100 * np.log(values / 0.2) / np.log(25), atol=0.01)
    log = re.findall(r'<path d="M([^"]*)" class="smooth c0"', text)[1]
    heights = [1000 * (1 - np.log(value / 0.2) / np.log(25)) for value in (0.3, 0.2, 4.0)]
    assert log == "L".join(f"{across} {height:.0f}" for across, height in zip((0, 1000, 2000), heights, strict=True))


def test_a_chart_of_one_point_or_equal_values_is_drawn() -> None:
    for points in ([(5, 0.0)], [(1, 2.0), (2, 2.0)], [(0, -1.0), (1, 0.0)]):
        assert "nan" not in figure(Chart("Loss", [Line("x", points, "line", 0, ())]))


def test_a_short_run_has_curves(tmp_path: Path) -> None:
    """Of three epochs, with one row between: speed and learning rate go by the epochs, and the one row is a dot."""
    rows = [row for row in training_rows(60) if row.get("scope") != "step" or row["step"] == 50]
    charts = {chart.title: chart for chart in charts_of([read_facts(write_run(tmp_path / "short", rows=rows))])}
    assert [step for step, _ in charts["Learning rate"].lines[0].points] == [20, 40, 60]
    assert [step for step, _ in charts["Throughput, images per second"].lines[0].points] == [20, 40, 60]
    one = charts["Loss"].lines[0]
    assert (one.label, one.points[0][0], one.style) == ("train, steps", 50, "line")


# Attempts, jobs, events


def test_how_attempts_ended_and_why() -> None:
    """SLURM's causes reach the attempt that was the last in the job; a number of a job is not needed to find it."""
    job = {"job_id": "7", "array_task": 2, "nodes": ["n0", "n1"]}
    jobs = [
        {"event": "submitted", "time": moment(0), "job_id": "7"},
        {"event": "begin", "time": moment(1), "restart": 0, **job},
        {
            "event": "end",
            "time": moment(30),
            "restart": 0,
            **job,
            "cause": "node_failure",
            "step": 40,
            "requeued": True,
        },
        {"event": "begin", "time": moment(40), "restart": 1, **job},
    ]
    lines = [
        start(1, 2, slurm_job_id="9"),
        end(1, 10, "failed", 20, "NonFiniteError: loss is nan"),
        start(2, 12, slurm_job_id="9", from_step=15),
        start(3, 41, slurm_job_id="9", from_step=30),
    ]
    attempts = attempts_of(lines, jobs_of(jobs), running=True)
    assert [(each.number, each.outcome, each.reason, each.end_step) for each in attempts] == [
        (1, "failed", "NonFiniteError: loss is nan", 20),
        (2, "interrupted", "node failure, requeued", 40),
        (3, "running", "", None),
    ]
    assert [each.job.name for each in attempts if each.job] == ["7_2", "7_2", "7_2, restart 1"]
    assert [(event.step, event.sign, event.text) for event in events_of(attempts, 35)] == [
        (
            15,
            "↻2",
            "attempt 2 goes on from step 15; attempt 1 failed: NonFiniteError: loss is nan; 5 steps were done again",
        ),
        (
            30,
            "↻3",
            "attempt 3 goes on from step 30; attempt 2 was interrupted: node failure, requeued; 10 steps "
            "were done again",
        ),
    ]


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (end(1, 9, "completed", 50), []),
        (end(1, 9, "stopped", 50, "SIGTERM"), [(50, "■", "attempt 1 was stopped: SIGTERM")]),
        (end(1, 9, "failed", 50, "MemoryError"), [(50, "✕", "attempt 1 failed: MemoryError")]),
        (None, [(48, "✕", "attempt 1 was interrupted: killed, or its machine was lost")]),
    ],
)
def test_how_the_last_attempt_ended_is_marked(last: dict[str, Any] | None, expected: list[Any]) -> None:
    attempts = attempts_of([start(1, 0), *([last] if last else [])], [], running=False)
    assert [(event.step, event.sign, event.text) for event in events_of(attempts, 48)] == expected


# Several runs


def test_the_best_run_comes_first(tmp_path: Path) -> None:
    """By the test where all have one; by the best validation where one has none; those without either at the end."""
    worse = write_run(tmp_path / "worse", rows=training_rows(100, level=1.5))
    better = write_run(tmp_path / "better", rows=training_rows(60, level=0.5))
    untested = write_run(tmp_path / "untested", rows=training_rows(60, level=0.1, tested=False))
    empty = write_run(tmp_path / "empty")
    facts = {each.name: each for each in map(read_facts, (worse, better, untested, empty))}
    both = ranking([facts["worse"], facts["better"]])
    assert ([run.name for run in both.runs], both.by) == (["better", "worse"], "accuracy on the test split")
    all_four = ranking(list(facts.values()))
    assert [run.name for run in all_four.runs] == ["untested", "better", "worse", "empty"]
    assert all_four.by == "best accuracy on the validation split"


def test_config_differences(tmp_path: Path) -> None:
    schedules: list[Any] = [None, [{"name": "StepLR", "step_size": 5}], {"name": "StepLR", "step_size": 5}]
    facts = [
        read_facts(write_run(tmp_path / name, config={"optimizer": {"lr": lr, "fused": None}, "scheduler": scheduler}))
        for name, lr, scheduler in zip("abc", (0.1, 1e-5, 0.1), schedules, strict=True)
    ]
    assert config_differences(facts) == [
        ("optimizer.lr", ["0.1", "1e-05", "0.1"]),
        ("scheduler", ["null", "[{name: StepLR, step_size: 5}]", "—"]),
        ("scheduler.name", ["—", "—", "StepLR"]),
        ("scheduler.step_size", ["—", "—", "5"]),
    ]


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
    assert [name for name, _ in hostile.elements] == [name for name, _ in harmless.elements]
    assert not [attributes for _, attributes in hostile.elements if "onload" in attributes]
    assert NASTY in hostile.text


def test_elements_are_escaped() -> None:
    made = element("a", "<b>&\"'", element("i", None, [1, 2.5]), class_='"><x>', data_key="k", title=None)
    assert made == '<a class="&quot;&gt;&lt;x&gt;" data-key="k">&lt;b&gt;&amp;&quot;&#x27;<i>12.5</i></a>'
    data = json_data({"a": "</script><!--\u2028"})
    assert "<" not in data.removeprefix('<script type="application/json">').removesuffix("</script>")
    inside = data.removeprefix('<script type="application/json">').removesuffix("</script>")
    assert json.loads(inside) == {"a": "</script><!--\u2028"}


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


@pytest.mark.parametrize(
    "damage", [{"confusion": [[1]]}, {"classes": []}, {"mistakes": [{"label": 9}]}, {"per_class": None}, {"loss": "x"}]
)
def test_a_damaged_evaluation_is_named(damage: dict[str, Any], tmp_path: Path) -> None:
    whole = evaluation([[1, 2], [3, 4]], ["a", "b"])
    run = write_run(tmp_path / "x", evaluations=[whole | damage])
    facts = read_facts(run)
    assert (facts.evaluations, facts.damaged_evaluations) == ([], ["evaluation-test.json"])


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
    with holding_lock(running):
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


def test_a_long_run_is_shown_fast_and_small(tmp_path: Path) -> None:
    """100,000 rows: under 3 seconds of this process, under 3 MB."""
    run = write_run(tmp_path / "x", attempts=[start(1, 0)], rows=training_rows(91_000))
    assert len((run / "metrics.jsonl").read_text().splitlines()) > 100_000
    before = time.process_time()
    text = report_of(run)
    assert time.process_time() - before < 3.0
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
