"""`trainlib.fit`: the model, data and loss that it is given keep every promise of those that a file names."""

from __future__ import annotations

import functools
import linecache
import logging
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fit_parts
import pytest
import ranks
import torch
from fit_parts import CONFIG, Net, OtherNet, arrays, dataset, fit, squared_mean
from parts import tutorial_cnn
from safetensors.torch import load_file
from torch import Tensor, nn

import trainlib
from trainlib.config import load_config, read_resolved
from trainlib.data import ImageSet
from trainlib.data.sources.arrays.synthetic import make_synthetic
from trainlib.errors import EXIT_STOPPED, CheckpointError, ConfigError, RunDirectoryError
from trainlib.models.own_parts.custom_parts import NO_CUSTOM_PARTS, CustomParts
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import read_lines
from trainlib.runs.records.rows import BY_THE_CLOCK


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    return [{k: row[k] for k in row if k not in BY_THE_CLOCK} for row in read_lines(run.metrics_file)]


def run_in(cwd: Path) -> RunDirectory:
    return RunDirectory(cwd / "runs/own")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run that nothing disturbs, of one process."""
    cwd = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        fit()
    return run_in(cwd)


def fit_and_die(signal_number: int, at_call: int) -> int:
    """A signal comes at the `at_call`-th time that the loss is computed with gradients; the first two only try it."""
    calls = 0

    def squared(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled() and len(labels) > 1
        if calls == at_call:
            os.kill(os.getpid(), signal_number)
        return fit_parts.squared(logits, labels)

    try:
        fit(loss=squared)
    except SystemExit as stopped:  # which would end the rank by itself, were it not for the tests' own rank program
        return int(str(stopped.code))
    return 0


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, EXIT_STOPPED),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_run_again_it_is_the_same_in_every_bit(
    whole: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    assert ranks.run(fit_and_die, number, 10, world_size=1, cwd=tmp_path) == [code]
    assert 6 <= max(row["step"] for row in rows(run_in(tmp_path))) < 12
    monkeypatch.chdir(tmp_path)
    fit()
    assert len(read_lines(run_in(tmp_path).attempts_file)) == (3 if number == signal.SIGKILL else 4)
    assert rows(run_in(tmp_path)) == rows(whole)
    assert run_in(tmp_path).summary()["weights_sha256"] == whole.summary()["weights_sha256"]


def test_given_parts_are_the_named_ones_in_every_bit(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tutorial CNN, cross entropy and the drawings, named in one run and given in the other.

    A given model keeps its layout in memory, so it is given with the one that the named model gets.
    """
    drawings = make_synthetic(200, 50)
    monkeypatch.setattr("trainlib.data.make_synthetic", lambda: drawings)
    small: list[Any] = ["quickstart", {**CONFIG, "data": {"limit": 64}, "train": {"epochs": 1, "batch_size": 20}}]
    named = trainlib.fit(*small, "name=named")
    given = trainlib.fit(
        *small,
        "name=given",
        model=lambda num_classes: tutorial_cnn(num_classes).to(memory_format=torch.channels_last),
        loss=nn.CrossEntropyLoss(),
        dataset=trainlib.image_dataset(drawings.train, drawings.test, drawings.class_names),
    )
    assert rows(given) == rows(named)
    assert len(rows(named)) >= 4
    weights = [list(load_file(newest(run) / "model.safetensors").items()) for run in (named, given)]
    for (name, tensor), (other, same) in zip(*map(sorted_by_layer, weights), strict=True):
        assert torch.equal(tensor, same), (name, other)


def sorted_by_layer(weights: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """In the order of the layers: the convolutions of both come first, then the linear ones, by their last number."""
    return sorted(
        weights, key=lambda pair: ("classifier" in pair[0], [int(n) for n in re.findall(r"\d+", pair[0])], pair[0])
    )


def newest(run: RunDirectory) -> Path:
    return max(run.checkpoints.glob("step-*"))


def fit_without_dropout() -> None:
    fit(model=functools.partial(Net, dropout=0.0))


def test_two_ranks_train_on_the_same_samples_at_the_same_rates(tmp_path: Path) -> None:
    """Without dropout, which every rank draws for itself: the losses of all rows within 1e-5."""
    found = []
    for world_size in (1, 2):
        cwd = tmp_path / str(world_size)
        cwd.mkdir()
        assert ranks.run(fit_without_dropout, world_size=world_size, cwd=cwd) == [0] * world_size
        assert read_resolved(run_in(cwd).config_file).model.name == "custom:Net"
        found.append(rows(run_in(cwd)))
    one, two = found
    for key in ("step", "split", "count", "lr"):
        assert [row[key] for row in one] == [row[key] for row in two]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in two], rel=1e-5)


def fit_elastic() -> None:
    fit("train.reproducibility=elastic", "train.virtual_shards=4")


@pytest.mark.slow
def test_elastic_mode_is_the_same_in_every_bit_for_given_parts(tmp_path: Path) -> None:
    """Dropout included, on one and two ranks."""
    digests = set()
    for world_size in (1, 2):
        cwd = tmp_path / str(world_size)
        cwd.mkdir()
        assert ranks.run(fit_elastic, world_size=world_size, cwd=cwd) == [0] * world_size
        digests.add(run_in(cwd).summary()["weights_sha256"])
    assert len(digests) == 1


def fit_on_data_of_the_rank() -> None:
    fit(dataset=dataset(seed=int(os.environ["RANK"])))


def test_a_rank_with_other_data_is_refused(tmp_path: Path) -> None:
    assert ranks.run(fit_on_data_of_the_rank, world_size=2, cwd=tmp_path)[1] == 1
    assert "the ranks do not train the same; nothing was trained" in ranks.console(tmp_path, rank=1)
    assert not run_in(tmp_path).path.exists()  # refused: nothing is left behind


class Fetched:
    """Images that are made as they are asked for: what docs/python.md says of data that does not fit into memory."""

    def __init__(self, pixels: Any, device: torch.device | None = None):
        self.pixels, self.device = pixels, device or torch.device("cpu")

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device) -> Fetched:
        return Fetched(self.pixels, device)

    def batches(self, ids: Sequence[Tensor]) -> Iterator[Tensor]:
        for ids_B in ids:
            yield torch.from_numpy(self.pixels[ids_B.numpy()]).permute(0, 3, 1, 2).to(self.device)


def test_images_that_are_fetched_give_the_same_bits(whole: RunDirectory, workdir: Path) -> None:
    train, test = (
        ImageSet(Fetched(images), torch.from_numpy(labels)) for images, labels in (arrays(), arrays(100, 30))
    )
    run = fit("data.image_size=16", dataset=trainlib.image_dataset(train, test, classes=["a", "b", "c"]))
    assert rows(run) == rows(whole)


def test_a_loss_of_samples_and_its_mean_are_the_same(whole: RunDirectory, workdir: Path) -> None:
    assert [row["loss"] for row in rows(fit(loss=squared_mean))] == [row["loss"] for row in rows(whole)]


@pytest.mark.parametrize("changes", [(), ("train.average={}",), ("train.average={}", "checkpoint.best=null")])
def test_a_finished_run_is_given_back_and_its_weights_with_it(workdir: Path, changes: tuple[str, ...]) -> None:
    torch.manual_seed(3)
    trained = Net(3)
    run = fit(*changes, model=trained)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    untrained = Net(3)
    assert fit(*changes, model=untrained).summary() == run.summary()
    assert all(
        torch.equal(a, b) for a, b in zip(trained.state_dict().values(), untrained.state_dict().values(), strict=True)
    )
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    with pytest.raises(RunDirectoryError, match="is finished"):
        fit(*changes, model=untrained, resume="")


def test_a_finished_run_is_given_back_where_data_lie_elsewhere_and_where_it_is_older(workdir: Path) -> None:
    """A run that began before `data.split` and `data.decode` existed keeps the values of then."""
    summary = fit().summary()
    assert fit("data.root=elsewhere", "data.cache=none").summary() == summary
    file = workdir / "runs/own/config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if line.split(":")[0].strip() not in ("split", "decode")))
    assert fit().summary() == summary


def test_the_code_of_parts_is_that_of_their_classes_and_functions(tmp_path: Path) -> None:
    def parts_of(text: str) -> dict[str, Any]:
        file = tmp_path / "parts.py"
        file.write_text(text)
        linecache.checkcache(str(file))
        names: dict[str, Any] = {"__name__": "parts"}
        exec(compile(text, str(file), "exec"), names)
        return names

    text = "def focal(logits, labels, gamma=2.0):\n    return logits.sum(1) ** gamma\n"
    code = CustomParts(loss=parts_of(text)["focal"]).code()
    assert code
    assert CustomParts(loss=parts_of("EPOCHS = 3\n\n" + text)["focal"]).code() == code
    assert CustomParts(loss=parts_of(text.replace("2.0", "3.0"))["focal"]).code() != code
    focal = parts_of(text)["focal"]
    assert CustomParts(loss=functools.partial(focal, gamma=1.0)).code() != CustomParts(loss=focal).code()
    assert CustomParts(loss=nn.CrossEntropyLoss(reduction="none")).code() == ""
    assert CustomParts(model=Net).code() == CustomParts(model=Net(3)).code() != CustomParts(model=OtherNet).code()
    assert NO_CUSTOM_PARTS.code() == ""


def test_a_run_whose_loss_has_another_body_goes_on_and_says_so(workdir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trainlib")
    assert fit_and_die(signal.SIGTERM, 5) == EXIT_STOPPED  # with a loss of the same name around it
    fit()
    assert any("or of what a part of one's own uses, is other" in line for line in caplog.messages)


def test_another_part_in_its_place_is_refused(whole: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole.path.parent.parent)
    digest = read_resolved(whole.config_file).data.name
    refused: list[tuple[dict[str, Any], str]] = [
        ({"model": OtherNet}, "model.name: custom:Net there, custom:OtherNet now"),
        ({"loss": squared_mean}, "loss.name: custom:squared there, custom:squared_mean now"),
        ({"dataset": dataset(seed=5)}, f"data.name: {digest} there, custom:"),
    ]
    for parts, message in refused:
        with pytest.raises(RunDirectoryError, match=message):
            fit(**parts)
    with pytest.raises(CheckpointError, match=r"(?s)does not fit the model.*size mismatch for"):
        fit("train.epochs=3", model=functools.partial(Net, width=4), resume="")
    assert whole.summary()["status"] == "completed"


def test_no_file_brings_a_given_part(whole: RunDirectory) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config([str(whole.config_file)])
    assert [mistake.key for mistake in raised.value.mistakes] == ["data.name", "model.name", "loss.name"]
    assert "got custom:Net, which was given in Python and is in no file: run the script" in str(raised.value)
