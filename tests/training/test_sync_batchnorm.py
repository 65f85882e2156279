"""`model.sync_batchnorm` on several ranks, and `model.checkpoint_activations`: whole trainings, compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import tiny
import torch
from safetensors.torch import load_file
from soak import SOAK, only_in_soak
from torch import Tensor

from trainlib.config import Config, harmful, load_config
from trainlib.errors import ConfigError
from trainlib.runs.records.checkpoints import steps_in

MODEL = "timm/test_resnet"
# 38 images: three batches of 12 and one of 2, of which a third rank, and most virtual shards, get nothing.
COMMON = ["data.limit=38", "optimizer={name: SGD, lr: 0.01, momentum: 0.9}", "train.clip_grad_norm=null"]
ELASTIC = ["train.reproducibility=elastic", "train.virtual_shards=4"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sync") / "images"
    tiny.make_images(root)
    return root


def train(images: Path, cwd: Path, world_size: int, *changes: str, name: str = MODEL, **model: Any) -> Path:
    """One run in a directory of its own below `cwd`."""
    keys = ", ".join(f"{key}: {str(value).lower()}" for key, value in {"name": name, **model}.items())
    cwd = tiny.in_folder(cwd, f"{len(list(cwd.iterdir()))}-{world_size}")
    words = tiny.arguments(images, 2, 4, *COMMON, f"model={{{keys}}}", *changes)
    codes = ranks.train(words, world_size=world_size, cwd=cwd)
    assert codes == [0] * world_size, ranks.console(cwd)
    return cwd


def losses(cwd: Path) -> Tensor:
    return torch.tensor([row["loss"] for row in tiny.rows(cwd)], dtype=torch.float64)


def statistics(cwd: Path) -> Tensor:
    """The running means and variances of the first checkpoint, after four steps."""
    steps = steps_in(cwd / "runs/run/checkpoints")
    state = load_file(steps[min(steps)] / "model.safetensors")
    return torch.cat([tensor for name, tensor in state.items() if "running" in name]).double()


@pytest.mark.parametrize(
    ("changes", "world_sizes"),
    [
        pytest.param([], (3,), id="exact", marks=pytest.mark.slow),
        pytest.param([], (2,), id="exact-two", marks=only_in_soak),
        pytest.param(ELASTIC, (1, 3), id="elastic", marks=only_in_soak),
    ],
)
def test_losses_and_statistics_are_those_of_one_process(
    tmp_path: Path, images: Path, changes: list[str], world_sizes: tuple[int, ...]
) -> None:
    """Beside torch's own BatchNorm in one process, which sees the whole of every batch.

    Of small steps on images that leave a channel more than two values in the last batch: else roundings grow.
    """
    well_behaved = ["data.image_size=64", "optimizer.lr=0.0001"]
    alone = train(images, tmp_path, 1, *well_behaved)
    for world_size in world_sizes:
        together = train(images, tmp_path, world_size, *well_behaved, *changes, sync_batchnorm=True)
        assert torch.allclose(losses(together), losses(alone), rtol=1e-6, atol=1e-6)
        assert torch.allclose(statistics(together), statistics(alone), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_without_it_they_are_not(tmp_path: Path, images: Path) -> None:
    """The test above could fail."""
    alone, apart = (train(images, tmp_path, world_size, "data.drop_last=true") for world_size in (1, 2))
    assert not torch.allclose(losses(apart), losses(alone), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "changes", "model", "world_sizes"),
    [
        pytest.param(MODEL, [], {}, (1, 3), id="four-shards", marks=pytest.mark.slow),
        pytest.param(MODEL, ["train.virtual_shards=8"], {}, (1, 3, 8), id="eight-shards", marks=only_in_soak),
        pytest.param(
            MODEL, ["train.precision=bf16", "train.average={decay: 0.9}"], {}, (1, 3), id="bf16-ema",
            marks=only_in_soak,
        ),
        pytest.param(
            MODEL, [], {"freeze": "[conv1.*, bn1.*, layer1.*]"}, (1, 4), id="frozen-stem", marks=only_in_soak
        ),
        pytest.param("shufflenet_v2_x0_5", [], {}, (1, 2, 4), id="branches-shufflenet", marks=only_in_soak),
        pytest.param(
            "googlenet", ["data.image_size=64", "train.epochs=1"], {}, (1, 2, 4), id="googlenet", marks=only_in_soak
        ),
        pytest.param(
            "timm/test_efficientnet", ["data.image_size=64"], {"drop_rate": 0.2, "drop_path_rate": 0.2}, (1, 2, 4),
            id="dropout-efficientnet", marks=only_in_soak,
        ),
        pytest.param(
            MODEL, [], {"checkpoint_activations": True}, (1, 2, 4), id="recomputed", marks=only_in_soak
        ),
    ],
)  # fmt: skip
def test_in_elastic_mode_every_world_size_ends_with_the_same_bits(
    tmp_path: Path, images: Path, name: str, changes: list[str], model: dict[str, Any], world_sizes: tuple[int, ...]
) -> None:
    shards = 8 if "train.virtual_shards=8" in changes else 4
    sizes = range(1, shards + 1) if SOAK else world_sizes
    made = [train(images, tmp_path, n, *ELASTIC, *changes, name=name, sync_batchnorm=True, **model) for n in sizes]
    for other in made[1:]:
        tiny.assert_same_result(other, made[0])


@pytest.mark.parametrize(
    ("changes", "model", "world_size"),
    [
        pytest.param([], {"drop_rate": 0.3}, 1, id="exact", marks=only_in_soak),
        pytest.param(
            [], {"sync_batchnorm": True, "drop_rate": 0.3}, 2, id="two-ranks-synchronised", marks=only_in_soak
        ),
        pytest.param(ELASTIC, {"sync_batchnorm": True}, 2, id="elastic-synchronised", marks=pytest.mark.slow),
        pytest.param(
            ["train.micro_batch_size=4", "train.precision=bf16", "data.drop_last=true"], {}, 2, id="micro",
            marks=only_in_soak
        ),
        pytest.param(
            ["data.drop_last=true"], {"freeze": "[conv1.*, bn1.*, layer1.*]"}, 2, id="frozen", marks=only_in_soak
        ),
    ],
)  # fmt: skip
def test_recomputed_activations_change_no_bit(
    tmp_path: Path, images: Path, changes: list[str], model: dict[str, Any], world_size: int
) -> None:
    kept = train(images, tmp_path, world_size, *changes, **model)
    again = train(images, tmp_path, world_size, *changes, **model, checkpoint_activations=True)
    tiny.assert_same_result(again, kept)
    assert "blocks are computed again in the backward pass" in (again / "runs/run/logs/rank-0.log").read_text()


def test_only_what_takes_part_in_the_bits_is_asked_about() -> None:
    def config(**model: Any) -> Config:
        return Config.model_validate({"name": "run", "model": {"name": "resnet18", **model}})

    assert harmful(config(), config(checkpoint_activations=True)) == []
    assert [change.key for change in harmful(config(), config(sync_batchnorm=True))] == ["model.sync_batchnorm"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.sync_batchnorm=true", "train.micro_batch_size=8"], "train.micro_batch_size: got 8, but model.sync_b"),
        (["model.sync_batchnorm=true", "train.compile=auto"], "train.compile: got auto, but model.sync_batchnorm is"),
        (["model.checkpoint_activations=true", "train.compile=true"], "got true, but model.checkpoint_activations is"),
        (["model.sync_batchnorm=1"], "model.sync_batchnorm: got 1"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(["quickstart", "model.name=resnet18", *words])
