"""Sweeps with `folds` and `seeds`: their runs, what these say together, and the report of it."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweep_files import written

from launch.cli import main as launch
from launch.cli.sweeps import out_of_fold
from launch.sweep.file.grid import Sweep, read_sweep
from launch.sweep.repeated.predictions import FILE
from launch.sweep.repeated.table import repeats_facts, repeats_of
from trainlib.config import dump_config
from trainlib.errors import ConfigError
from trainlib.runs import RUNS

FOLDS = "configs: [quickstart]\nfolds: 3\n"
CLASSES = ("ant", "bee")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str) -> Sweep:
    return read_sweep(written(text))


def test_a_run_for_each_fold_and_seed() -> None:
    sweep = read(FOLDS + "seeds: 2\noverrides: {seed: 7}\ngrid: {optimizer.lr: [0.1, 0.2]}\n")
    assert [element.name for element in sweep.elements][:4] == [
        "s-lr0.1-seed7-fold-1-3",
        "s-lr0.1-seed7-fold-2-3",
        "s-lr0.1-seed7-fold-3-3",
        "s-lr0.1-seed8-fold-1-3",
    ]
    assert len(sweep.elements) == 12
    assert {(e.config.data.fold, e.config.seed) for e in sweep.elements} == {
        (f"{k}/3", seed) for k in (1, 2, 3) for seed in (7, 8)
    }
    assert [(one.label, len(one.elements)) for one in repeats_of(sweep)] == [("lr=0.1", 6), ("lr=0.2", 6)]


@pytest.mark.parametrize("alone", ["folds: 3", "seeds: 3"])
def test_one_of_them_is_enough(alone: str) -> None:
    assert len(read(f"configs: [quickstart]\n{alone}\n").elements) == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("folds: 1", "folds: got 1, must be a whole number >= 2"),
        ("seeds: yes", 'seeds: got "yes", must be a whole number'),
        ("seeds: 2\ngrid: {seed: [0, 1]}", "grid.seed: is varied by seeds: take one of them out"),
        ("folds: 2\nruns: [{data.fold: 1/2}]", "runs.0.data.fold: is varied by folds"),
        ("folds: 2\nspace: {seed: [0, 1]}\ntrials: 2", "folds: got a search beside it"),
        ("fold: 2", "did you mean folds?"),
    ],
)
def test_mistakes_in_the_file(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(f"configs: [quickstart]\n{text}\n")
    assert says in str(caught.value)


def complete(name: str, accuracy: float, best: float = 0.5) -> Path:
    """A run directory as a training leaves it, as far as it is looked at here."""
    run = RUNS / name
    run.mkdir(parents=True)
    summary = {
        "status": "completed",
        "step": 1,
        "epoch": 1,
        "best": {"metric": "val/accuracy", "value": best, "step": 1},
    }
    (run / "summary.json").write_text(json.dumps(summary))
    elements = read_sweep(Path("s.yaml")).elements if Path("s.yaml").exists() else ()
    config = next((dump_config(element.config) for element in elements if element.name == name), f"name: {name}\n")
    (run / "config.yaml").write_text(config)
    evaluation = {"split": "test", "loss": 1 - accuracy, "accuracy": accuracy, "macro_f1": accuracy / 2}
    (run / "evaluation-test.json").write_text(json.dumps(evaluation))
    return run


def predictions(run: Path, first: int, count: int, seed: int) -> tuple[list[str], list[str]]:
    """Write a file of random answers; return labels and answers."""
    draw = np.random.default_rng(seed)
    values = draw.dirichlet([1, 1], size=count)
    labels = [CLASSES[k] for k in draw.integers(0, 2, size=count)]
    answers = [CLASSES[k] for k in values.argmax(axis=1)]
    with (run / FILE).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["index", "label", "prediction", "probability_ant", "probability_bee"])
        rows = zip(labels, answers, values.tolist(), strict=True)
        table.writerows([first + i, label, answer, *p] for i, (label, answer, p) in enumerate(rows))
    return labels, answers


def test_mean_interval_and_pooled_figures(capsys: pytest.CaptureFixture[str]) -> None:
    import sklearn.metrics

    sweep = read(FOLDS)
    labels, answers = [], []
    for number, (element, accuracy) in enumerate(zip(sweep.elements, (0.8, 0.9, 0.7), strict=True)):
        found = predictions(complete(element.name, accuracy), 20 * number, 20, number)
        labels += found[0]
        answers += found[1]
    out_of_fold.collect(sweep)  # there is nothing left to predict
    (facts,) = repeats_facts(repeats_of(sweep))
    assert facts["complete"] == 3
    accuracy = facts["metrics"]["test/accuracy"]
    assert (accuracy["mean"], accuracy["deviation"]) == pytest.approx((0.8, 0.1))
    assert accuracy["high"] - 0.8 == pytest.approx(4.302652729911275 * 0.1 / 3**0.5)
    assert facts["out_of_fold"]["accuracy"] == sklearn.metrics.accuracy_score(labels, answers)
    with (RUNS / "s/out-of-fold.csv").open(newline="") as file:
        assert [row["index"] for row in csv.DictReader(file)] == [str(i) for i in range(60)]
    assert launch(["sweep", "s.yaml", "--results"]) == 0
    shown = capsys.readouterr().out
    (row,) = [line.split() for line in shown.splitlines() if "test/accuracy" in line and "0.8000" in line]
    assert row[-7:] == [
        "test/accuracy",
        "0.8000",
        "0.1000",
        "0.5516",
        "1.0484",
        f"{facts['out_of_fold']['accuracy']:.4f}",
        "3/3",
    ]
    assert launch(["sweep", "s.yaml", "--results", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == facts["runs"]


def test_predictions_that_are_not_those_of_the_end_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a clock went back, or rows were lost, the time of the file says nothing."""
    sweep = read(FOLDS)
    asked: list[str] = []

    def call(module: str, words: list[str]) -> int:
        asked.append(words[0])
        return 0

    monkeypatch.setattr(out_of_fold, "call", call)
    for number, element in enumerate(sweep.elements):
        labels, answers = predictions(run := complete(element.name, 0.8), 20 * number, 20, number)
        right = sum(label == answer for label, answer in zip(labels, answers, strict=True))
        summary = json.loads((run / "summary.json").read_text())
        test = {"count": 20 + (number == 1), "accuracy": (right - (number == 2)) / 20}
        (run / "summary.json").write_text(json.dumps(summary | {"test": test}))
        os.utime(run / "summary.json", (0, 0))
    out_of_fold.collect(sweep)
    assert asked == [str(RUNS / element.name) for element in sweep.elements[1:]]


def test_configurations_are_ranked_by_validation(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = read("configs: [quickstart]\nseeds: 2\ngrid: {optimizer.lr: [0.1, 0.2]}\n")
    for element in sweep.elements:
        better = element.values["optimizer.lr"] == 0.2
        complete(element.name, accuracy=0.6 if better else 0.9, best=0.8 if better else 0.7)
    assert [one.label for one in repeats_of(sweep)] == ["lr=0.2", "lr=0.1"]


def test_without_a_best_checkpoint_the_last_validation_ranks() -> None:
    sweep = read(
        "configs: [quickstart]\nseeds: 2\noverrides: {checkpoint.best: null}\ngrid: {optimizer.lr: [0.1, 0.2]}\n"
    )
    for element in sweep.elements:
        better = element.values["optimizer.lr"] == 0.2
        run = complete(element.name, accuracy=0.6 if better else 0.9, best=0.1)
        row = {"split": "val", "step": 1, "loss": 1.0, "accuracy": 0.8 if better else 0.7}
        (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert [(one.label, one.spreads["val/accuracy"].mean) for one in repeats_of(sweep)] == [
        ("lr=0.2", 0.8),
        ("lr=0.1", 0.7),
    ]


def test_unfinished_runs_do_not_count() -> None:
    sweep = read(FOLDS)
    complete(sweep.elements[0].name, 0.8)
    (facts,) = repeats_facts(repeats_of(sweep))
    assert facts["complete"] == 1
    assert facts["metrics"]["test/accuracy"]["low"] is None
    assert facts["out_of_fold"] == {}


def test_the_report_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = read(FOLDS)
    called: list[Any] = []
    monkeypatch.setattr(out_of_fold, "collect", called.append)
    for number, element in enumerate(sweep.elements):
        predictions(complete(element.name, 0.8), 20 * number, 20, number)
    assert launch(["report", "s.yaml", "--output", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "Repeated runs" in page
    assert "out of fold" in page
    assert len(called) == 1


def test_a_sweep_that_has_not_begun_has_no_report(capsys: pytest.CaptureFixture[str]) -> None:
    written("configs: [quickstart]\ngrid: {seed: [0, 1]}\n")
    assert launch(["report", "s.yaml"]) == 2
    assert "none of its 2 runs has begun" in capsys.readouterr().err


def test_runs_are_compared_on_the_same_test_samples(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("other", 1)):
        predictions(complete(name, 0.8), 0, 50, seed)
    first = (RUNS / "one" / FILE).read_text().splitlines()
    second = (RUNS / "other" / FILE).read_text().splitlines()
    rows = [",".join([a.split(",")[0], a.split(",")[1], *b.split(",")[2:]]) for a, b in zip(first, second, strict=True)]
    (RUNS / "other" / FILE).write_text("\n".join([first[0], *rows[1:], ""]))
    assert launch(["report", "one", "other", "--output", "page.html"]) == 0
    assert "larger than noise" in Path("page.html").read_text()
