"""All ranks train the same, or none trains; a run that began under an earlier version goes on with its values."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import ranks
import tiny
import yaml

from trainlib.runs.files.json_records import read_lines


def train_as(rank_1: list[str], change: str | None, cwd: str) -> int:
    """The training program; on rank 1 with more arguments, or with something changed."""
    from trainlib.runs.machine import environment
    from trainlib.train import main

    is_other = os.environ["RANK"] == "1"
    if is_other and change == "code":
        ranks.replace(environment, "code_sha256", lambda: "f" * 64)
    if is_other and change == "version":
        versions = environment.versions()
        ranks.replace(environment, "versions", lambda: versions | {"torch": "0.1"})
    return main(tiny.arguments(Path(cwd) / "images", 1, 4, *(rank_1 if is_other else [])))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("provenance")
    tiny.make_images(cwd / "images")
    other = cwd / "other"
    shutil.copytree(cwd / "images", other)
    (other / "train/a").rename(other / "train/t")
    (other / "train/b").rename(other / "train/a")
    (other / "train/t").rename(other / "train/b")
    edited = cwd / "edited"
    shutil.copytree(cwd / "images", edited)
    with (edited / "train/a/03.png").open("r+b") as file:
        content = file.read()
        file.seek(0)
        file.write(content[:-12] + bytes(12))  # the end chunk, which decoding does without
    return cwd


@pytest.mark.parametrize(
    ("rank_1", "change", "named"),
    [
        (["optimizer.lr=0.02"], None, "optimizer.lr is 0.02, and 0.001 on rank 0"),
        pytest.param(["seed=7"], None, "seed is 7, and 0 on rank 0", marks=pytest.mark.slow),
        pytest.param(["train.batch_size=10"], None, "train.batch_size is 10, and 12", marks=pytest.mark.slow),
        pytest.param(["tracking.log_every=3"], None, "tracking.log_every is 3, and 1", marks=pytest.mark.slow),
        pytest.param(["data.root={cwd}/other"], None, "with other bytes", marks=pytest.mark.slow),
        (["data.root={cwd}/edited"], None, "1 file with other bytes: train/a/03.png"),
        pytest.param([], "code", "the code of trainlaunch is ffff", marks=pytest.mark.slow),
        pytest.param([], "version", "torch is 0.1, and ", marks=pytest.mark.slow),
    ],
)
def test_ranks_that_differ_do_not_train(
    images: Path, tmp_path: Path, rank_1: list[str], change: str | None, named: str
) -> None:
    words = [word.format(cwd=images) for word in rank_1]
    codes = ranks.run(train_as, words, change, str(images), world_size=2, cwd=tmp_path)
    assert codes == [2, 2], ranks.console(tmp_path)
    said = ranks.console(tmp_path)
    assert said.count("error: the ranks do not train the same; nothing was trained:") == 1
    assert named in said
    assert "rank 1 on " in said
    assert not (tmp_path / "runs/run/metrics.jsonl").exists()
    assert not list((tmp_path / "runs/run/checkpoints").glob("*"))


def test_other_places_of_the_same_data_train_together(images: Path, tmp_path: Path) -> None:
    shutil.copytree(images / "images", tmp_path / "copy")
    words = [f"data.root={tmp_path}/copy"]
    assert ranks.run(train_as, words, None, str(images), world_size=2, cwd=tmp_path) == [0, 0]


def test_a_run_of_an_earlier_version_goes_on_with_its_split_and_pixels(images: Path, tmp_path: Path) -> None:
    """Its config.yaml and manifests know neither data.split nor data.decode: both stay as they were."""
    words = tiny.arguments(images / "images", 1, 2, "scheduler=null")
    assert ranks.train([*words, "data.split=index", "data.decode=pillow"], cwd=tmp_path) == [0]
    config = tmp_path / "runs/run/config.yaml"
    values = yaml.safe_load(config.read_text())
    del values["data"]["split"], values["data"]["verify"], values["data"]["decode"]
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    held_out = len(read_lines(tmp_path / "runs/run/metrics.jsonl"))

    longer = [*words, "train.epochs=2", "--resume"]
    assert ranks.train(longer, cwd=tmp_path) == [0], ranks.console(tmp_path)
    assert ranks.console(tmp_path).count("data.split: index, as this run began before there was a choice") == 1
    assert ranks.console(tmp_path).count("data.decode: pillow, as this run began before there was a choice") == 1
    data = yaml.safe_load(config.read_text())["data"]
    assert (data["split"], data["decode"]) == ("index", "pillow")
    assert len(read_lines(tmp_path / "runs/run/metrics.jsonl")) > held_out

    assert ranks.train([*words, "train.epochs=3", "--resume"], cwd=tmp_path) == [0]
    assert "began before" not in ranks.console(tmp_path)
