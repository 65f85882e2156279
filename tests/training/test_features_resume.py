"""Runs with cached features that are stopped and resumed, with the cache on or off in either attempt."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import ranks
import tiny
from stopping import stop_within

from trainlib.config import load_config
from trainlib.distributed.consensus.stop_consensus import StopConsensus
from trainlib.errors import EXIT_STOPPED, ConfigError
from trainlib.train import main

# The same for the program. 40 samples to train on: batches of 12, 12, 12 and 4.
TRAINING = [
    "quickstart",
    "name=run",
    "data={name: synthetic, limit: 40, val_fraction: 0.003, augment: {}}",
    "optimizer={name: AdamW, lr: 1e-3}",
    "scheduler={name: CosineAnnealingLR, interval: step}",
    "train={epochs: 3, batch_size: 12}",
    "checkpoint={every: 5st, keep: 2}",
    "tracking={log_every: 1, tensorboard: false}",
]
VGG_ON = "model={name: vgg16, width: 0.0625, freeze: features, cache_features: true}"


@pytest.mark.slow
def test_one_rank_is_asked_to_stop_while_features_are_computed(tmp_path: Path) -> None:
    signalled = (stop_within, [*TRAINING, VGG_ON], "trainlib.training.tuning.feature_cache", "_gather", 1, 1)
    assert ranks.run(*signalled, world_size=2, cwd=tmp_path) == [EXIT_STOPPED] * 2, ranks.console(tmp_path)
    assert "before training began" in ranks.console(tmp_path)


@pytest.mark.slow
def test_stopped_and_resumed_with_and_without(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cache is harmless: it may come and go."""

    def program(*words: str) -> tuple[int, str]:
        code = main([*TRAINING, VGG_ON, *words])
        return code, capsys.readouterr().out

    assert program("name=whole", "model.cache_features=false")[0] == 0
    code, said = 0, ""
    for boundary, choice in ((2, "true"), (3, "false"), (3, "auto"), (None, "true")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StopConsensus, "agreed", stopping_at(boundary))
            code, said = program(f"model.cache_features={choice}", "--resume")
        assert code == (EXIT_STOPPED if boundary else 0)
        assert ("features of 60 images cached in " in said) == (choice == "true")
    assert tiny.digest(workdir) == tiny.digest(workdir, name="whole")
    assert tiny.rows(workdir) == tiny.rows(workdir, name="whole")


def stopping_at(boundary: int | None) -> Callable[[StopConsensus, int], bool]:
    """An `StopConsensus.agreed` that says yes at this attempt's `boundary`-th step boundary."""
    calls = itertools.count(1)
    return lambda self, step: next(calls) == boundary


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.cache_features=true", "data.augment={}"], "model.freeze is null"),
        (["model={name: resnet18, freeze: backbone, cache_features: true}"], "data.augment makes other images"),
    ],
)
def test_mistakes_are_told_before_anything_starts(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"model.cache_features: got true, but {said}"):
        load_config(["quickstart", *words])
