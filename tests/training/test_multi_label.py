"""Pictures with several labels, from the table to the report: trained, evaluated, predicted, exported, resumed."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import label_sets
import numpy as np
import pytest
import ranks
import tiny
import torch
from PIL import Image
from soak import only_in_soak
from stopping import train_until

from launch.report.facts.run_facts import read_facts
from launch.report.page import page
from trainlib import load_model
from trainlib.errors import EXIT_STOPPED, EXIT_USER_ERROR

COUNT = 600
SHORT = ["train={epochs: 2, batch_size: 48}", "optimizer={name: AdamW, lr: 2e-3}", "scheduler=null"]


def evaluate(arguments: list[str]) -> int:
    from trainlib.inference.evaluate import main

    return main(arguments)


def predict(arguments: list[str]) -> int:
    from trainlib.inference.predict import main

    return main(arguments)


def export(arguments: list[str]) -> int:
    from trainlib.inference.export import main

    return main(arguments)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    label_sets.write_table(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    """A working directory with a finished run of two ranks, which learned something and errs a lot."""
    cwd = tmp_path_factory.mktemp("run")
    assert ranks.train(label_sets.words(table, *SHORT), world_size=2, cwd=cwd) == [0, 0], ranks.console(cwd)
    return cwd


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def arrays(rows: Sequence[dict[str, str]], key: str) -> np.ndarray:
    """Labels or predictions as scikit-learn takes them, bool [N, C]."""
    return np.array([[name in row[key].split(";") for name in label_sets.CLASSES] for row in rows])


def test_rows_have_the_metrics_of_sets(run: Path) -> None:
    [*_, val, test] = [row for row in tiny.rows(run) if row["split"] != "train"]
    for row in (val, test):
        assert {"map", "macro_f1", "micro_f1", "subset_accuracy", "accuracy", "loss", "count"} <= set(row)
        assert not {"top5", "balanced_accuracy", "thresholds"} & set(row)
        assert row["accuracy"] == row["subset_accuracy"]
    summary = json.loads((run / "runs/run/summary.json").read_text())
    assert summary["best"]["metric"] == "val/map"
    assert summary["test"]["map"] == test["map"]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("split", ["test", "val"])
def test_figures_are_those_of_scikit_learn(run: Path, world_size: int, split: str) -> None:
    from sklearn import metrics as theirs

    words = ["run", "--split", split, "--predictions", f"{split}{world_size}.csv", "--batch-size", "32", "--json"]
    assert ranks.run(evaluate, words, world_size=world_size, cwd=run) == [0] * world_size, ranks.console(run)
    found = json.loads(ranks.console(run))
    rows = rows_of(run / f"{split}{world_size}.csv")
    true, predicted = arrays(rows, "label"), arrays(rows, "prediction")
    scores = np.array([[float(row[f"probability_{name}"]) for name in label_sets.CLASSES] for row in rows], np.float32)
    assert (predicted == (scores.astype(float) >= np.array(found["thresholds"]))).all()
    assert found["count"] == len(rows)
    assert found["map"] == pytest.approx(theirs.average_precision_score(true, scores, average="macro"), abs=1e-12)
    for kind in ("macro", "micro"):
        expected = theirs.f1_score(true, predicted, average=kind, zero_division=0)
        assert found[f"{kind}_f1"] == pytest.approx(expected, abs=1e-12)
    assert found["subset_accuracy"] == found["accuracy"] == theirs.accuracy_score(true, predicted)
    loss = torch.nn.functional.binary_cross_entropy(torch.from_numpy(scores), torch.from_numpy(true).float())
    assert found["loss"] == pytest.approx(float(loss), abs=1e-5)
    best = [row for row in tiny.rows(run) if row["split"] == split]
    best = [row for row in best if split == "test" or row["step"] == found["step"]]
    for key in ("map", "macro_f1", "micro_f1", "accuracy"):
        assert found[key] == pytest.approx(best[-1][key], abs=1e-6), "as the run itself found, with the same thresholds"


def test_any_number_of_ranks_gives_the_same_bits(run: Path) -> None:
    words = ["run", "--batch-size", "32", "--json"]
    found = []
    for world_size in (1, 2):
        assert ranks.run(evaluate, words, world_size=world_size, cwd=run) == [0] * world_size
        found.append(ranks.console(run))
    assert found[0] == found[1]


def test_a_prediction_names_all_labels(run: Path, table: Path) -> None:
    pictures = [str(table / f"photos/{i:04}.png") for i in range(40)]
    assert ranks.run(predict, ["run", *pictures, "--json"], world_size=1, cwd=run) == [0], ranks.console(run)
    lines = [json.loads(line) for line in ranks.console(run).splitlines()]
    model = load_model(run / "runs/run")
    assert model.thresholds is not None
    answers = model.predict(pictures)
    for line, picture, answer in zip(lines, pictures, answers, strict=True):
        assert line["path"] == picture
        assert {one["class"] for one in line["labels"]} == set(answer.labels)
        thresholds = dict(zip(model.classes, model.thresholds, strict=True))
        assert set(answer.labels) == {name for name, p in answer.probabilities.items() if p >= thresholds[name]}
        assert list(answer.labels) == sorted(answer.labels, key=lambda name: -answer.probabilities[name])
    assert ranks.run(predict, ["run", *pictures], world_size=1, cwd=run) == [0]
    empty = [line for line, answer in zip(ranks.console(run).splitlines(), answers, strict=True) if not answer.labels]
    assert all(line.split() == [line.split()[0], "-"] for line in empty)


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        (predict, ["run", "a.png", "--top", "3"], "--top: this model names every class above its threshold"),
        (evaluate, ["run", "--data", "."], "--data: got ., and pictures in class folders have one label each"),
    ],
)
def test_what_has_no_meaning_is_refused(run: Path, program: Any, words: list[str], message: str) -> None:
    assert ranks.run(program, words, world_size=1, cwd=run) == [EXIT_USER_ERROR]
    assert message in ranks.console(run)


@pytest.mark.slow
def test_the_exported_description_tells_how_to_answer(run: Path, table: Path) -> None:
    import onnxruntime

    words = ["run", "--format", "onnx", "--output", "net.onnx"]
    assert ranks.run(export, words, world_size=1, cwd=run) == [0], ranks.console(run)
    told = json.loads((run / "net.onnx.json").read_text())
    assert told["task"] == "any number of classes for each picture"
    session = onnxruntime.InferenceSession(str(run / "net.onnx"), providers=["CPUExecutionProvider"])
    pixels = np.asarray(Image.open(table / "photos/0003.png").convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255
    [[logits]] = session.run(["logits"], {"images": pixels})
    named = {
        name
        for name, logit, threshold in zip(told["classes"], logits, told["thresholds"], strict=True)
        if 1 / (1 + np.exp(-float(logit))) >= threshold
    }
    assert named == set(load_model(run / "runs/run").predict(str(table / "photos/0003.png"))[0].labels)


def test_the_report_shows_sets(run: Path) -> None:
    shown = page([read_facts(run / "runs/run")], datetime.now(UTC))
    assert "mean average precision" in shown
    assert "Confusion matrix" not in shown
    assert "<b>missed</b>" in shown
    assert "<b>added</b>" in shown


@pytest.mark.slow
def test_bits_do_not_depend_on_stops_storage_or_ranks(tmp_path: Path, table: Path) -> None:
    """With mixed sets, and small classes that count more."""
    mixed = label_sets.words(
        table,
        *SHORT,
        "loss.weight=balanced",
        "data.augment={flip: true, mixup: 0.4, cutmix: 1.0}",
        "tracking.log_every=1",
        "train.reproducibility=elastic",
        "train.virtual_shards=4",
    )
    folders = {name: tiny.in_folder(tmp_path, name) for name in ("whole", "two", "streamed", "stopped")}
    assert ranks.train(mixed, cwd=folders["whole"]) == [0], ranks.console(folders["whole"])
    assert ranks.train(mixed, world_size=2, cwd=folders["two"]) == [0, 0]
    assert ranks.train([*mixed, "data.cache=none"], cwd=folders["streamed"]) == [0]
    assert ranks.run(train_until, mixed, 13, world_size=1, cwd=folders["stopped"]) == [EXIT_STOPPED]
    manifest = next((folders["stopped"] / "runs/run/checkpoints").glob("step-00000013/manifest.json"))
    assert len(json.loads(manifest.read_text())["thresholds"]) == len(label_sets.CLASSES)
    assert ranks.train(mixed, world_size=2, cwd=folders["stopped"]) == [0, 0]
    for name in ("two", "streamed", "stopped"):
        assert tiny.digest(folders[name]) == tiny.digest(folders["whole"]), name
        assert tiny.rows(folders[name]) == tiny.rows(folders["whole"]), name


@only_in_soak
def test_a_small_network_learns_the_labels(tmp_path: Path) -> None:
    label_sets.write_table(tmp_path, 1000)
    long = ["train={epochs: 6, batch_size: 32}", "optimizer={name: AdamW, lr: 2e-3}", "scheduler=null"]
    assert ranks.train(label_sets.words(tmp_path, *long), cwd=tmp_path) == [0], ranks.console(tmp_path)
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["test"]["map"] > 0.9
