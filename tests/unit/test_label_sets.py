"""Metrics of sets of classes are scikit-learn's, also where there is nothing to divide by; thresholds are the best."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainlib.training.metrics.label_sets import (
    SetPredictions,
    average_precisions,
    choose_thresholds,
    per_class,
    predicted_sets,
    set_metrics,
)

EDGES = {
    "a class without a positive": ([[0.9, 0.2], [0.1, 0.8], [0.4, 0.3]], [[1, 0], [0, 0], [1, 0]]),
    "a class without a negative": ([[0.9, 0.2], [0.1, 0.8], [0.4, 0.3]], [[1, 0], [1, 1], [1, 0]]),
    "equal probabilities": ([[0.5, 0.5], [0.5, 0.5], [0.5, 0.1]], [[1, 0], [0, 1], [1, 0]]),
    "all sets empty": ([[0.1, 0.2], [0.6, 0.1]], [[0, 0], [0, 0]]),
    "empty sets, and nothing named": ([[0.1, 0.2], [0.2, 0.1]], [[0, 0], [0, 0]]),
    "one sample": ([[0.3, 0.7]], [[0, 1]]),
    "saturated": ([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]], [[1, 0], [0, 1], [1, 1]]),
}


def cases() -> list[Any]:
    found = []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        count, classes = int(generator.integers(1, 60)), int(generator.integers(1, 9))
        scores = generator.random((count, classes)).astype(np.float32)
        if seed % 2:
            scores = scores.round(1)  # many ties
        labels = generator.random((count, classes)) < generator.random(classes)
        found.append(pytest.param(torch.from_numpy(scores), torch.from_numpy(labels), id=f"random {seed}"))
    for name, (edge_scores, edge_labels) in EDGES.items():
        found.append(pytest.param(torch.tensor(edge_scores), torch.tensor(edge_labels, dtype=torch.bool), id=name))
    return found


all_cases = pytest.mark.parametrize(("scores_NC", "labels_NC"), cases())


@all_cases
@pytest.mark.parametrize("own", [True, False], ids=["chosen thresholds", "a half"])
def test_figures_are_those_of_scikit_learn(scores_NC: Tensor, labels_NC: Tensor, own: bool) -> None:
    from sklearn import metrics as theirs

    classes = scores_NC.shape[1]
    ours = SetPredictions(torch.arange(len(scores_NC)), scores_NC).metrics(labels_NC, None if own else [0.5] * classes)
    predicted = scores_NC.double().numpy() >= np.array(ours.thresholds)
    true, scores = labels_NC.numpy(), scores_NC.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes without a positive, and takes 0 for them
        columns = range(classes)
        precisions = [theirs.average_precision_score(true[:, c], scores[:, c]) for c in columns]
        kinds = ("macro", "micro")
        f1 = {
            kind: theirs.f1_score(true, predicted, average=kind, zero_division=0) for kind in ("macro", "micro", None)
        }
        if classes == 1:  # which scikit-learn takes for two classes, of which it counts the second
            f1 = dict.fromkeys(kinds, theirs.f1_score(true[:, 0], predicted[:, 0], zero_division=0))
        tables = theirs.precision_recall_fscore_support(true, predicted, zero_division=0)
    assert average_precisions(scores_NC, labels_NC) == pytest.approx(precisions, abs=1e-12)
    assert ours.map == pytest.approx(np.mean(precisions), abs=1e-12)
    assert ours.macro_f1 == pytest.approx(f1["macro"], abs=1e-12)
    assert ours.micro_f1 == pytest.approx(f1["micro"], abs=1e-12)
    assert ours.accuracy == ours.subset_accuracy == np.mean((true == predicted).all(axis=1))
    if classes > 1:
        assert ours.subset_accuracy == theirs.accuracy_score(true, predicted)
        assert ours.map == pytest.approx(_quiet_map(true, scores), abs=1e-12)
        rows = per_class(scores_NC, labels_NC, [str(c) for c in columns], ours.thresholds)
        for key, values in zip(("precision", "recall", "f1", "count"), tables, strict=True):
            assert [row[key] for row in rows] == pytest.approx(values.tolist(), abs=1e-12), key


def _quiet_map(true: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(average_precision_score(true, scores, average="macro"))


@all_cases
def test_a_threshold_is_the_best_there_is(scores_NC: Tensor, labels_NC: Tensor) -> None:
    """No other cut of the probabilities gives the class a larger F1, and no probability is on a threshold."""
    for c, threshold in enumerate(choose_thresholds(scores_NC, labels_NC)):
        scores, true = scores_NC[:, c].double(), labels_NC[:, c]

        def f1(cut: float, scores: Tensor = scores, true: Tensor = true) -> float:
            named = scores >= cut
            return 2 * int((named & true).sum()) / max(int(named.sum()) + int(true.sum()), 1)

        cuts = [0.0, *scores.tolist(), 1.1]
        assert f1(threshold) == max(map(f1, cuts)) or not true.any()
        assert true.any() or threshold == 0.5
        if true.any() and scores.min() > 0:
            assert threshold not in scores.tolist()


def test_a_threshold_lies_in_the_middle_and_near_a_half() -> None:
    scores = torch.tensor([[0.9], [0.8], [0.3], [0.2]])
    assert choose_thresholds(scores, torch.tensor([[1], [1], [0], [0]]).bool()) == [pytest.approx(0.55)]
    # Naming both, or the first alone, is as good: F1 is 2/3 for 1 of 1 (of 2) and 2 of 4.
    scores = torch.tensor([[0.9], [0.6], [0.5], [0.1]])
    assert choose_thresholds(scores, torch.tensor([[1], [0], [0], [1]]).bool()) == [pytest.approx(0.75)]


def test_not_a_number_gives_no_figure() -> None:
    scores = torch.tensor([[float("nan"), 0.2], [0.3, 0.8]])
    labels = torch.tensor([[True, False], [False, True]])
    assert np.isnan(set_metrics(scores, labels, [0.5, 0.5]).map)
    assert choose_thresholds(scores, labels)[0] == 0.5
    empty = set_metrics(torch.empty(0, 2), torch.empty(0, 2, dtype=torch.bool), [0.5, 0.5])
    assert all(np.isnan(value) for value in empty[:5])


def test_mistakes_name_what_was_missed_and_added_the_surest_first() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.6, 0.2, 0.1], [0.1, 0.1, 0.1], [0.7, 0.8, 0.6]])
    labels = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 0]]).bool()
    found = SetPredictions(torch.arange(4), scores).mistakes(labels, [0.5] * 3, 25)
    assert [(m["index"], m["missed"], m["added"], m["surest"]) for m in found[1:]] == [
        (1, [], [0], 0),
        (3, [], [2], 2),
    ]
    assert (found[0]["index"], found[0]["missed"], found[0]["added"]) == (0, [1], [0])
    assert len(SetPredictions(torch.arange(4), scores).mistakes(labels, [0.5] * 3, 1)) == 1


def test_thresholds_are_compared_in_full_precision() -> None:
    """A threshold between two neighbouring float32 numbers tells them apart."""
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    scores = torch.tensor([[float(high)], [float(low)]])
    labels = torch.tensor([[True], [False]])
    [threshold] = choose_thresholds(scores, labels)
    assert predicted_sets(scores, [threshold]).tolist() == [[True], [False]]
    assert [*itertools.chain(*predicted_sets(scores, [float(high)]).tolist())] == [True, False]
