"""What several runs say together: intervals, figures of pooled predictions, differences and noise, against SciPy."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from launch.sweep.repeated.noise import difference, paired_bootstrap
from launch.sweep.repeated.predictions import Predictions, figures, pooled, read_predictions, write_pooled
from launch.sweep.repeated.statistics import spread, t_quantile
from trainlib.errors import TrainlaunchError

CLASSES = ("ant", "bee", "cow", "dog")


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30, 500])
def test_student_quantiles(freedom: int) -> None:
    import scipy.stats

    assert t_quantile(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom), rel=1e-9)


@pytest.mark.parametrize("values", [[0.9, 0.91, 0.85, 0.95, 0.88], [1.0, 2.0], [3.0, 3.0, 3.0]])
def test_mean_deviation_and_interval(values: list[float]) -> None:
    import scipy.stats

    found = spread(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    if found.deviation:
        expected = scipy.stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values))
        assert (found.low, found.high) == pytest.approx(expected)


def test_one_figure_has_no_deviation() -> None:
    assert (spread([0.5]).mean, spread([0.5]).deviation, spread([0.5]).low) == (0.5, None, None)


def drawn(count: int, seed: int = 0, first: int = 0) -> Predictions:
    """Some of the answers are right; no sample is a cow."""
    draw = np.random.default_rng(seed)
    probabilities = draw.dirichlet(np.ones(4), size=count)
    labels = [CLASSES[k] for k in draw.choice([0, 1, 3], size=count)]
    answers = [CLASSES[k] for k in probabilities.argmax(axis=1)]
    samples = [f"{name}/{first + i}.png" for i, name in enumerate(labels)]
    return Predictions("path", samples, labels, answers, CLASSES, probabilities.tolist())


def test_figures_are_those_of_scikit_learn() -> None:
    import sklearn.metrics

    found = drawn(200)
    true, answers = found.labels, found.answers
    recalls = [np.mean([a == t for t, a in zip(true, answers, strict=True) if t == name]) for name in sorted(set(true))]
    assert figures(found) == pytest.approx(
        {
            "loss": sklearn.metrics.log_loss(true, np.array(found.probabilities), labels=CLASSES),
            "accuracy": sklearn.metrics.accuracy_score(true, answers),
            "macro_f1": sklearn.metrics.f1_score(true, answers, average="macro"),
            "balanced_accuracy": np.mean(recalls),
        }
    )


def test_pooled_predictions_are_read_back(tmp_path: Path) -> None:
    parts = {"a": drawn(20), "b": drawn(30, 1, 20)}
    write_pooled(tmp_path / "all.csv", parts)
    with (tmp_path / "all.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["a"] * 20 + ["b"] * 30
    assert [row["path"] for row in rows] == list(pooled(parts).samples)
    assert [float(row["probability_dog"]) for row in rows] == [values[3] for values in pooled(parts).probabilities]


def test_names_that_a_spreadsheet_would_compute_are_escaped_as_in_the_files_of_the_runs(tmp_path: Path) -> None:
    row = ["'=1+1.png", "'@a", "''b", "0.5", "0.25", "0.25"]
    text = "path,label,prediction,probability_'@a,probability_''b,probability_-1\n" + ",".join(row) + "\n"
    (tmp_path / "p.csv").write_text(text)
    found = read_predictions(tmp_path / "p.csv")
    assert (found.samples, found.labels, found.answers, found.classes) == (
        ["=1+1.png"],
        ["@a"],
        ["'b"],
        ["@a", "'b", "-1"],
    )
    write_pooled(tmp_path / "all.csv", {"r": found})
    assert (tmp_path / "all.csv").read_text() == "run," + text.replace(",probability_-1\n", ",probability_-1\nr,")


def test_a_file_that_was_cut_is_noticed_wherever(tmp_path: Path) -> None:
    whole = f"{HEADER}x,a,a,0.25\r\ny,a,a,0.125\r\n".replace("\n", "\r\n", 1).encode()
    file = tmp_path / "p.csv"
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        if whole[:length].endswith(b"0.25\r\n"):  # the number of its rows tells: see `collect`
            continue
        with pytest.raises(TrainlaunchError, match="is no whole file"):
            read_predictions(file)
    file.write_bytes(whole)
    assert read_predictions(file).probabilities == [[0.25], [0.125]]


def test_classes_of_which_none_has_a_probability() -> None:
    """As of sigmoids, each for itself: the loss is the largest that is counted, not an error."""
    found = Predictions("path", ["x"], ["a"], ["a"], ["a", "b"], [[0.0, 0.0]])
    assert figures(found)["loss"] == pytest.approx(52 * np.log(2))


def test_a_sample_in_two_folds_is_named() -> None:
    with pytest.raises(TrainlaunchError, match=r"/0.png is in two folds, a and b"):
        pooled({"a": drawn(20), "b": drawn(20)})


HEADER = "path,label,prediction,probability_a\n"


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", f"{HEADER}x,a,a,none\n", "path,label\n", HEADER, f"{HEADER}x,a,a,1", f"{HEADER}x\n", "a\0"],
)
def test_a_file_of_another_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(TrainlaunchError, match="is no whole file of predictions"):
        read_predictions(tmp_path / "p.csv")


@pytest.mark.parametrize(("better", "worse", "larger"), [(60, 20, True), (22, 18, False), (0, 0, False), (0, 30, True)])
def test_a_difference_is_larger_than_noise(better: int, worse: int, larger: bool) -> None:
    found = paired_bootstrap(better, worse, 1000)
    assert found.value == (better - worse) / 1000
    assert found.low <= found.value <= found.high
    assert found.is_larger_than_noise is larger
    assert found == paired_bootstrap(better, worse, 1000)


def test_the_bootstrap_is_that_of_scipy() -> None:
    import scipy.stats

    gains = [1] * 60 + [-1] * 40 + [0] * 900
    expected = scipy.stats.bootstrap([gains], np.mean, method="percentile", n_resamples=2000, rng=1).confidence_interval
    found = paired_bootstrap(60, 40, 1000)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=2e-3)


def test_models_are_compared_on_the_same_samples_in_any_order() -> None:
    one, other = drawn(100), drawn(100, 3)
    swapped = Predictions(
        "path",
        [*one.samples[::-1]],
        [*one.labels[::-1]],
        [*one.labels[::-1]],  # all right
        CLASSES,
        one.probabilities,
    )
    found = difference(swapped, one)
    assert found.value == pytest.approx(1 - figures(one)["accuracy"])
    assert "larger than noise" in str(found)
    with pytest.raises(TrainlaunchError, match="tested on other samples"):
        difference(one, other)
