"""Top-5 accuracy, macro F1 and balanced accuracy, against scikit-learn and torchmetrics, on any number of ranks."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import made_once
import numpy as np
import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

import trainlib.data
from trainlib.config import Best, load_config
from trainlib.data.batches.loader import MicroBatch
from trainlib.data.targets import Targets
from trainlib.errors import ConfigError
from trainlib.runs.records.rows import BY_THE_CLOCK
from trainlib.training.metrics.class_counts import ClassCounter, ClassCounts, is_in_top
from trainlib.training.metrics.progress import Progress

CPU = torch.device("cpu")


def counted(logits_NC: torch.Tensor, labels_N: torch.Tensor, sizes: list[int]) -> ClassCounts:
    counter = ClassCounter(logits_NC.shape[1], CPU)
    for logits, labels in zip(logits_NC.split(sizes), labels_N.split(sizes), strict=True):
        counter.add(MicroBatch(torch.arange(len(labels)), logits, Targets(labels, labels), 0), logits)
    return counter.counts()


def some_answers(num_samples: int, num_classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are often right, and labels of a few classes much more than of the others; the last never occurs."""
    generator = torch.Generator().manual_seed(seed)
    shares = 1.0 / torch.arange(1, num_classes, dtype=torch.float64) ** 2
    labels_N = torch.multinomial(shares, num_samples, replacement=True, generator=generator)
    logits_NC = torch.randn(num_samples, num_classes, generator=generator)
    logits_NC[torch.arange(num_samples), labels_N] += 1.0
    return logits_NC, labels_N


@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:A single label was found")
@settings(max_examples=25, deadline=None)
@given(some.integers(1, 60), some.integers(2, 12), some.integers(0, 99))
def test_metrics_are_those_of_scikit_learn(num_samples: int, num_classes: int, seed: int) -> None:
    import sklearn.metrics

    logits_NC, labels_N = some_answers(num_samples, num_classes, seed)
    sizes = [num_samples // 3, num_samples - num_samples // 3]
    found = counted(logits_NC, labels_N, sizes).metrics()
    predicted_N = logits_NC.argmax(dim=1)
    assert found.macro_f1 == pytest.approx(sklearn.metrics.f1_score(labels_N, predicted_N, average="macro"), rel=1e-12)
    assert found.balanced_accuracy == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(labels_N, predicted_N), rel=1e-12
    )
    if num_classes > 5:
        top5 = sklearn.metrics.top_k_accuracy_score(labels_N, logits_NC, k=5, labels=np.arange(num_classes))
        assert found.top5 == pytest.approx(top5, rel=1e-12)
    else:
        assert found.top5 == 1.0


def test_metrics_are_those_of_torchmetrics() -> None:
    import torchmetrics.functional.classification as torchmetrics

    logits_NC, labels_N = some_answers(500, 10)
    found = counted(logits_NC, labels_N, [500]).metrics()
    f1 = torchmetrics.multiclass_f1_score(logits_NC, labels_N, 10, average="macro")
    top5 = torchmetrics.multiclass_accuracy(logits_NC, labels_N, 10, average="micro", top_k=5)
    assert found.macro_f1 == pytest.approx(float(f1))
    assert found.top5 == pytest.approx(float(top5))


def test_a_network_that_knows_one_class_only() -> None:
    """90 of the large class are right, 10 of the small one wrong: accuracy 0.9, and what these metrics are for."""
    labels_N = torch.tensor([0] * 90 + [1] * 10)
    logits_NC = torch.tensor([[1.0, 0.0]]).expand(100, 2)
    found = counted(logits_NC, labels_N, [100]).metrics()
    assert found.balanced_accuracy == 0.5
    assert found.macro_f1 == pytest.approx((180 / 190 + 0) / 2)


def test_no_samples_have_no_metrics() -> None:
    found = counted(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), [0]).metrics()
    assert all(math.isnan(value) for value in found)


def test_equal_logits_are_ordered_by_class_and_a_label_that_is_not_a_number_is_no_hit() -> None:
    """A network that gives one value for all classes has five classes right, and not all of them."""
    assert is_in_top(torch.zeros(8, 8), torch.arange(8)).tolist() == [True] * 5 + [False] * 3
    logits_NC = torch.zeros(8, 8)
    logits_NC[torch.arange(8), torch.arange(8)] = math.nan
    assert not is_in_top(logits_NC, torch.arange(8)).any()
    assert not is_in_top(torch.full((8, 8), math.nan), torch.arange(8)).any()


def counts_of_a_rank(folder: Path) -> int:
    """The counts of this rank's samples, one of three ranks, and of all: rank 2 has none."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    logits_NC, labels_N = some_answers(41, 7)
    share = [slice(0, 30), slice(30, 41), slice(0)][dist.get_rank()]
    found = counted(logits_NC[share], labels_N[share], [len(labels_N[share])])
    torch.save([found.hits_C, found.true_C, found.predicted_C, found.num_in_top], folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
    return 0


def test_ranks_count_together(tmp_path: Path) -> None:
    whole = counted(*some_answers(41, 7), [41])
    assert ranks.run(counts_of_a_rank, tmp_path, world_size=3, cwd=tmp_path) == [0] * 3, ranks.console(tmp_path)
    for rank in range(3):
        hits_C, true_C, predicted_C, num_in_top = torch.load(tmp_path / f"{rank}.pt")
        assert torch.equal(hits_C, whole.hits_C)
        assert torch.equal(true_C, whole.true_C)
        assert torch.equal(predicted_C, whole.predicted_C)
        assert num_in_top == whole.num_in_top


@pytest.mark.parametrize("metric", ["val/top5", "val/macro_f1", "val/balanced_accuracy"])
def test_ties_go_to_the_lower_loss_and_then_to_the_later_epoch(metric: str) -> None:
    progress, best = Progress.at_start(1), Best.model_validate({"metric": metric, "mode": "max"})
    values = [(0.5, 1.0), (0.5, 1.1), (0.5, 0.9), (0.5, 0.9), (math.nan, 0.1), (0.4, 0.1)]
    improved = []
    for epoch, (value, loss) in enumerate(values, start=1):
        progress.step = epoch
        improved.append(progress.record_metrics({metric: value, "val/loss": loss}, epoch, best, None))
    assert improved == [True, False, True, True, False, False]
    assert progress.best == {"metric": metric, "value": 0.5, "step": 4, "epoch": 4}


DECIDING = [
    *("quickstart", "name=run", "data.limit=300", "train={epochs: 2, batch_size: 60, reproducibility: elastic}"),
    *("checkpoint.best={metric: val/macro_f1}", "train.early_stopping={metric: val/balanced_accuracy}"),
    *("scheduler={name: ReduceLROnPlateau, metric: val/top5}", "optimizer={name: AdamW, lr: 2e-3}"),
    "tracking={tensorboard: false, wandb: {mode: disabled}}",
]


def train_on_few(arguments: list[str]) -> int:
    ranks.replace(trainlib.data, "make_synthetic", made_once.draw_few)
    return ranks.main(arguments)


def evaluation_rows(folder: Path, world_size: int) -> list[dict[str, Any]]:
    folder.mkdir()
    assert ranks.run(train_on_few, DECIDING, world_size=world_size, cwd=folder) == [0] * world_size, ranks.console(
        folder
    )
    rows = [json.loads(line) for line in (folder / "runs/run/metrics.jsonl").read_text().splitlines()]
    assert all(name not in row for row in rows if row["split"] == "train" for name in ("top5", "macro_f1"))
    return [row for row in rows if row["split"] != "train"]


def test_a_run_decides_by_them(tmp_path: Path) -> None:
    rows = evaluation_rows(tmp_path / "run", 1)
    assert re.search(
        r"val +loss \d.*  accuracy 0.*  top5 0.*  macro_f1 0.*  balanced_accuracy 0", ranks.console(tmp_path / "run")
    )
    best = json.loads((tmp_path / "run/runs/run/summary.json").read_text())["best"]
    assert best["metric"] == "val/macro_f1"
    assert best["value"] == max(row["macro_f1"] for row in rows if row["split"] == "val")
    test = json.loads((tmp_path / "run/runs/run/evaluation-test.json").read_text())
    recalls, f1s = ([row[key] for row in test["per_class"]] for key in ("recall", "f1"))
    assert test["balanced_accuracy"] == rows[-1]["balanced_accuracy"] == pytest.approx(sum(recalls) / 10)
    assert test["macro_f1"] == rows[-1]["macro_f1"] == pytest.approx(sum(f1s) / 10)
    assert test["top5"] == rows[-1]["top5"] == test["top5_accuracy"]


@pytest.mark.slow
def test_two_ranks_in_elastic_mode_have_the_same_rows(tmp_path: Path) -> None:
    alone, together = evaluation_rows(tmp_path / "1", 1), evaluation_rows(tmp_path / "2", 2)
    assert len(alone) == 3
    for ours, theirs in zip(alone, together, strict=True):
        assert {name: ours[name] for name in ours if name not in BY_THE_CLOCK} == {
            name: theirs[name] for name in ours if name not in BY_THE_CLOCK
        }


@pytest.mark.parametrize("key", ["checkpoint.best", "train.early_stopping"])
@pytest.mark.parametrize("name", ["top5", "macro_f1", "balanced_accuracy"])
def test_mistakes(key: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf'{key}.metric: got "train/{name}", must be one of .*val/{name}'):
        load_config(["quickstart", f"{key}.metric=train/{name}"])
    with pytest.raises(ConfigError, match=rf"{key}.mode: got min, must be max for val/{name}"):
        load_config(["quickstart", f"{key}={{metric: val/{name}, mode: min}}"])
    if key == "train.early_stopping":
        with pytest.raises(ConfigError, match=r"set data.val_fraction, or use train/accuracy"):
            load_config(["quickstart", f"{key}.metric=val/{name}", "data.val_fraction=0"])
