"""The figures of an evaluation against scikit-learn, torchmetrics and definitions written out; the file of a run."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch
from PIL import Image
from torch import Tensor
from trained import CLASSES, TRAINING, checkpoint_of, drawings, pixels, plain_logits

from trainlib.config import LossConfig
from trainlib.data.augment.preprocess import Preprocess
from trainlib.data.batches.loader import BatchLoader, MicroBatch
from trainlib.data.batches.rank_slice import RankSlice
from trainlib.data.datasets.dataset import ImageSet
from trainlib.data.datasets.images import InMemoryImages
from trainlib.data.targets import Targets
from trainlib.runs.records.confusion import whole
from trainlib.training.metrics.predictions import (
    PredictionCollector,
    Predictions,
    calibration_error,
    class_probabilities,
    confusion_counts,
    describe,
    label_losses,
    per_class,
)
from trainlib.training.metrics.sums import Metrics
from trainlib.training.session import final_test

CPU = torch.device("cpu")
CROSS_ENTROPY = LossConfig()


def random_case(num_samples: int, num_classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are right about half of the time, and labels in which the last two classes do not occur."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(0, num_classes - 2, (num_samples,), generator=generator)
    logits_NC = 2 * torch.randn(num_samples, num_classes, generator=generator)
    logits_NC[torch.arange(num_samples), labels_N] += 2.5
    return logits_NC, labels_N


def micro_batch(ids: list[int], labels_N: Tensor) -> MicroBatch:
    ids_N = torch.tensor(ids, dtype=torch.int64)
    return MicroBatch(ids_N, torch.empty(len(ids), 3, 1, 1), Targets(labels_N[ids_N], labels_N[ids_N]), shard=0)


def answers_to(logits_NC: Tensor, labels_N: Tensor, micro_batches: list[list[int]]) -> Predictions:
    collector = PredictionCollector(CROSS_ENTROPY, CPU)
    for ids in micro_batches:
        collector.add(micro_batch(ids, labels_N), logits_NC[ids])
    return collector.gathered()


@pytest.mark.parametrize("num_classes", [3, 10, 40])
def test_counts_are_those_of_scikit_learn(num_classes: int) -> None:
    """Also where classes do not occur, or are never predicted: there the figures are 0."""
    import sklearn.metrics

    logits_NC, labels_N = random_case(500, num_classes)
    predicted_N = logits_NC.argmax(dim=1)
    classes = list(range(num_classes))
    counts = confusion_counts(labels_N, predicted_N, num_classes)
    assert (
        whole(counts, num_classes) == sklearn.metrics.confusion_matrix(labels_N, predicted_N, labels=classes).tolist()
    )
    figures = per_class(labels_N, predicted_N, [str(c) for c in classes])
    expected = sklearn.metrics.precision_recall_fscore_support(labels_N, predicted_N, labels=classes, zero_division=0)
    for key, values in zip(("precision", "recall", "f1", "count"), expected, strict=True):
        assert [row[key] for row in figures] == pytest.approx(values.tolist(), abs=1e-12), key


@pytest.mark.parametrize("num_classes", [3, 10, 40])
def test_answers_do_not_depend_on_how_the_samples_are_cut(num_classes: int) -> None:
    """One piece, or several of any size in any order, an empty one among them: the same answers in sample order."""
    logits_NC, labels_N = random_case(57, num_classes)
    whole = answers_to(logits_NC, labels_N, [list(range(57))])
    cut = answers_to(logits_NC, labels_N, [list(range(40, 57)), [], list(range(3, 40)), [2, 1, 0]])
    for field in ("ids_N", "predicted_N", "in_top_N", "confidence_N", "losses_N"):
        assert torch.equal(getattr(whole, field), getattr(cut, field)), field
    assert whole.ids_N.tolist() == list(range(57))
    assert torch.equal(whole.predicted_N, logits_NC.argmax(dim=1))
    assert torch.equal(whole.confidence_N, logits_NC.softmax(dim=1).max(dim=1).values.double())
    top = [label in row for label, row in zip(labels_N.tolist(), np.argsort(-logits_NC.numpy())[:, :5], strict=True)]
    assert whole.in_top_N.tolist() == top


def test_calibration_error_is_that_of_torchmetrics() -> None:
    import torchmetrics.functional.classification as torchmetrics

    logits_NC, labels_N = random_case(2_000, 10)
    predictions = answers_to(logits_NC, labels_N, [list(range(2_000))])
    assert predictions.confidence_N.max() < 1  # with a probability of exactly 1, torchmetrics makes a sixteenth bin
    expected = torchmetrics.multiclass_calibration_error(logits_NC, labels_N, num_classes=10, n_bins=15, norm="l1")
    found = calibration_error(predictions.confidence_N, predictions.predicted_N == labels_N)
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_calibration_error_as_it_is_defined() -> None:
    """The sum over bins of |hits - summed confidence| / N, counted by hand; 1.0 belongs to the last bin."""
    confidence = torch.tensor([1.0, 0.95, 0.94, 0.5, 0.48, 0.07], dtype=torch.float64)
    correct = torch.tensor([True, True, False, False, True, True])
    by_hand = (abs(2 - 1.95 - 0.94 + 0) + abs(1 - 0.5 - 0.48) + abs(1 - 0.07)) / 6
    # 14/15 = 0.933: the first three are in the last bin; 7/15 = 0.467 to 8/15: the next two; 1/15 = 0.067 to 2/15.
    assert calibration_error(confidence, correct) == pytest.approx(by_hand, abs=1e-15)
    assert calibration_error(confidence[:0], correct[:0]) == 0.0


@pytest.mark.parametrize("loss", [{"name": "BCEWithLogitsLoss"}, {"name": "BCELoss", "activation": "sigmoid"}])
def test_losses_on_sigmoids_have_a_probability_for_each_class(loss: dict[str, str]) -> None:
    logits_NC, _ = random_case(5, 10)
    assert torch.equal(class_probabilities(logits_NC, LossConfig.model_validate(loss)), logits_NC.sigmoid())
    assert torch.equal(class_probabilities(logits_NC, CROSS_ENTROPY), logits_NC.softmax(dim=1))


def test_the_loss_of_a_sample_is_finite_however_sure_the_model_is() -> None:
    """torch's cross entropy is the oracle for softmax, binary cross entropy of the label's own logit for sigmoids."""
    logits_NC, labels_N = random_case(50, 10)
    logits_NC[0] = 0
    logits_NC[0, (labels_N[0] + 1) % 10] = 1000
    expected_N = torch.nn.functional.cross_entropy(logits_NC, labels_N, reduction="none")
    torch.testing.assert_close(label_losses(logits_NC, labels_N, CROSS_ENTROPY), expected_N)
    assert expected_N[0] == 1000
    of_label_N = logits_NC.gather(1, labels_N[:, None])[:, 0]
    expected_N = torch.nn.functional.binary_cross_entropy_with_logits(
        of_label_N, torch.ones_like(of_label_N), reduction="none"
    )
    with_sigmoids = LossConfig.model_validate({"name": "BCEWithLogitsLoss"})
    torch.testing.assert_close(label_losses(logits_NC, labels_N, with_sigmoids), expected_N)


def test_the_mistakes_of_the_largest_loss_come_first_with_their_pictures() -> None:
    """Ties by position; a picture is the stored one, smaller where it is large; 36 at most; no right answer."""
    generator = torch.Generator().manual_seed(0)
    images_NCHW = torch.randint(0, 256, (60, 3, 40, 300), dtype=torch.uint8, generator=generator)
    labels_N = torch.zeros(60, dtype=torch.int64)
    ids_N = torch.arange(10, 60)  # as a validation split: its own positions are 0 to 49
    predicted_N = torch.tensor([1] * 40 + [0] * 10)
    confidence_N = torch.tensor([0.5, 0.9, 0.9, *[0.1] * 37, *[1.0] * 10], dtype=torch.float64)
    losses_N = torch.tensor([3.0, 7.0, 7.0, *[1.0] * 37, *[9.0] * 10], dtype=torch.float64)
    predictions = Predictions(ids_N, predicted_N, torch.ones(50, dtype=torch.bool), confidence_N, losses_N)
    preprocess = Preprocess((0.0,) * 3, (1.0,) * 3, 32)
    batches = BatchLoader(ImageSet(InMemoryImages(images_NCHW), labels_N), preprocess, RankSlice(0, 1, None), CPU)
    figures, source = Metrics(1.0, 0.4, 50), {"split": "val"}
    evaluation = describe(
        predictions, batches, ids_N, ["a", "b"], figures, source, lambda row: f"{int(ids_N[row])}.png"
    )
    mistakes = evaluation["mistakes"]
    assert [m["index"] for m in mistakes] == [1, 2, 0, *range(3, 36)]
    assert [m["loss"] for m in mistakes[:4]] == [7, 7, 3, 1]
    assert [m["file"] for m in mistakes[:4]] == ["11.png", "12.png", "10.png", "13.png"]
    assert [m["probability"] for m in mistakes[:4]] == [0.9, 0.9, 0.5, 0.1]
    assert {(m["label"], m["predicted"]) for m in mistakes} == {(0, 1)}
    first = Image.open(io.BytesIO(base64.b64decode(mistakes[0]["png"])))
    assert (first.format, first.size) == ("PNG", (160, 21))

    small = BatchLoader(
        ImageSet(InMemoryImages(images_NCHW[..., :32]), labels_N), preprocess, RankSlice(0, 1, None), CPU
    )
    evaluation = describe(predictions, small, ids_N, ["a", "b"], figures, source)
    assert evaluation["mistakes"][0]["file"] is None
    first = Image.open(io.BytesIO(base64.b64decode(evaluation["mistakes"][0]["png"])))
    assert np.array_equal(np.asarray(first).transpose(2, 0, 1), images_NCHW[11, :, :, :32].numpy())


def gather_in_rank(num_samples: int) -> None:
    """Inside a rank: record this rank's part of random samples, unequal ones and an empty one; write the answers."""
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    logits_NC, labels_N = random_case(num_samples, 10)
    mine = {0: list(range(1, num_samples, 2)), 1: [], 2: list(range(0, num_samples, 2))}[rank]
    collector = PredictionCollector(CROSS_ENTROPY, CPU)
    collector.add(micro_batch(mine, labels_N), logits_NC[mine])
    predictions = collector.gathered()
    torch.save(
        [predictions.ids_N, predictions.predicted_N, predictions.in_top_N, predictions.confidence_N],
        f"answers-{rank}.pt",
    )
    dist.destroy_process_group()


def test_every_rank_gets_all_answers(tmp_path: Path) -> None:
    assert ranks.run(gather_in_rank, 31, world_size=3, cwd=tmp_path) == [0, 0, 0]
    logits_NC, labels_N = random_case(31, 10)
    alone = answers_to(logits_NC, labels_N, [list(range(31))])
    for rank in range(3):
        found = torch.load(tmp_path / f"answers-{rank}.pt")
        for field, tensor in zip(("ids_N", "predicted_N", "in_top_N", "confidence_N"), found, strict=True):
            assert torch.equal(tensor, getattr(alone, field)), (rank, field)


def test_a_completed_run_leaves_its_evaluation(trained: Path) -> None:
    """Written by rank 0 of two: every figure is that of a plain network with the weights that were tested."""
    import sklearn.metrics

    found = json.loads((trained / "runs/run/evaluation-test.json").read_text())
    summary = json.loads((trained / "runs/run/summary.json").read_text())
    assert list(found) == [
        *("split", "step", "weights", "loss", "accuracy", "count"),
        *("top5", "macro_f1", "balanced_accuracy", "top5_accuracy", "calibration_error"),
        *("classes", "confusion", "per_class", "mistakes"),
    ]
    assert (found["split"], found["weights"], found["step"]) == ("test", "best", summary["best"]["step"])
    assert {key: found[key] for key in ("accuracy", "count")} == {
        key: summary["test"][key] for key in ("accuracy", "count")
    }
    assert found["loss"] == pytest.approx(summary["test"]["loss"], rel=1e-6)  # `launch eval` may have written it since

    images = drawings()
    logits_NC = plain_logits(checkpoint_of(trained, found["step"]), pixels(images))
    predicted_N = logits_NC.argmax(dim=1)
    assert found["confusion"] == sklearn.metrics.confusion_matrix(images.labels_N, predicted_N).tolist()
    wrong = int((predicted_N != images.labels_N).sum())
    assert 36 < wrong < 1_900, "the run should have learned something, and not all"
    losses_N = torch.nn.functional.cross_entropy(logits_NC, images.labels_N, reduction="none")
    worst = losses_N.where(predicted_N != images.labels_N, torch.tensor(0.0)).topk(36).values
    assert [m["loss"] for m in found["mistakes"]] == pytest.approx(worst.tolist(), abs=1e-5)
    assert {m["file"] for m in found["mistakes"]} == {None}, "drawings are no files"
    for mistake in found["mistakes"]:
        assert mistake["label"] == images.labels_N[mistake["index"]]
        assert mistake["predicted"] == predicted_N[mistake["index"]]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["mistakes"][0]["png"]))))
    assert np.array_equal(picture.transpose(2, 0, 1), pixels(images)[found["mistakes"][0]["index"]].numpy())
    assert len(found["classes"]) == CLASSES


def train_on_full_disk(arguments: list[str]) -> int:
    """In a rank: train, and find no room for the evaluation."""

    def fail(run: Path, evaluation: object) -> None:
        raise OSError(28, "No space left on device")

    ranks.replace(final_test, "write_evaluation", fail)
    return ranks.main(arguments)


def test_a_run_whose_evaluation_cannot_be_written_completes(tmp_path: Path) -> None:
    training = [*TRAINING, "train.steps=2", "train.epochs=null"]
    assert ranks.run(train_on_full_disk, training, world_size=1, cwd=tmp_path) == [0]
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["status"] == "completed"
    assert "the evaluation was not written" in ranks.console(tmp_path)
    assert "`launch eval run` makes it again" in ranks.console(tmp_path)
