"""`trainlib.fit`: what docs/python.md says is true, and the parts that it takes keep every promise."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
from parts import tutorial_cnn
from paths import REPOSITORY
from safetensors.torch import load_file
from torch import Tensor, nn

import trainlib
from trainlib.config import load_config, read_resolved
from trainlib.data import Dataset, ImageSet
from trainlib.data.sources.synthetic import make_synthetic
from trainlib.errors import EXIT_STOPPED, CheckpointError, ConfigError, RunDirectoryError, UserError
from trainlib.models.parts import build_custom, check_custom_model
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files import read_lines

PAGE = (REPOSITORY / "docs/python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
SCRIPTS = {match[1]: block for block in BLOCKS if (match := re.search(r'"name": "([\w-]+)"', block))}
AFTER = {"small-net": next(block for block in BLOCKS if "load_model" in block)}  # goes on where that script ends


def execute(script: str) -> None:
    """A script, as `python script.py` would run it; a tenth of the drawings is enough to see that it does."""
    import trainlib.data

    trainlib.data.make_synthetic = functools.partial(make_synthetic, 800, 200)  # type: ignore[assignment]
    exec(compile(script, "script.py", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_of_the_page_trains(name: str, tmp_path: Path) -> None:
    """As it stands, alone; and where it has a class or function of its own, the run says so."""
    assert len(SCRIPTS[name].splitlines()) < 35, "about 20 lines each, and the run"
    assert ranks.run(execute, SCRIPTS[name] + AFTER.get(name, ""), world_size=1, cwd=tmp_path) == [0]
    run = RunDirectory(tmp_path / "runs" / name)
    assert run.summary()["status"] == "completed"
    config = read_resolved(run.config_file)
    custom = {"small-net": ("model", "custom:SmallNet"), "focal": ("loss", "custom:focal")}
    if name in custom:
        section, expected = custom[name]
        assert getattr(config, section).name == expected
    if name in ("stripes", "rings"):
        assert re.fullmatch("custom:[0-9a-f]{12}", config.data.name)
        assert run.summary()["test"]["accuracy"] > 0.9, "these are easy"


def test_all_blocks_of_the_page_are_run() -> None:
    assert set(SCRIPTS) == {"from-python", "small-net", "stripes", "rings", "focal"}
    assert len(BLOCKS) == len(SCRIPTS) + len(AFTER)


def test_torchrun_starts_a_script(tmp_path: Path) -> None:
    """The page's own script under the real launcher, as two ranks."""
    (tmp_path / "train.py").write_text(SCRIPTS["stripes"])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    assert RunDirectory(tmp_path / "runs/stripes").summary()["world_size"] == 2


# What the tests below train: parts of our own in place of all three.


class Net(nn.Module):
    """Dropout in it, so that a resumed run is the same only where its generators are."""

    def __init__(self, num_classes: int, width: int = 8, dropout: float = 0.5):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout))
        self.head = nn.Linear(width * 49, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return logits


class OtherNet(Net):
    """The same weights under another name."""


def squared(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each sample."""
    return (logits.softmax(1) - nn.functional.one_hot(labels, logits.shape[1])).square().sum(1)


def squared_mean(logits: Tensor, labels: Tensor) -> Tensor:
    return squared(logits, labels).mean()


def arrays(seed: int = 0, count: int = 100) -> Any:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return images, generator.integers(0, 3, count)


def dataset(seed: int = 0) -> Dataset:
    return trainlib.image_dataset(arrays(seed), arrays(100, 30), classes=["a", "b", "c"])


CONFIG = {
    "name": "own",
    "data": {"augment": {"flip": True, "crop_padding": 2}},
    "optimizer": {"name": "AdamW", "lr": 1e-3},
    "train": {"epochs": 2, "batch_size": 16},
    "checkpoint": {"every": "3st"},
    "tracking": {"wandb": {"mode": "disabled"}, "tensorboard": False, "progress": False, "log_every": 1},
}


def fit(*config: Any, **parts: Any) -> RunDirectory:
    """A run `own` of 12 steps whose model, data set and loss are given."""
    return trainlib.fit(CONFIG, *config, **({"model": Net, "dataset": dataset(), "loss": squared} | parts))


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    return [{k: row[k] for k in row if k not in ("time", "images_per_second")} for row in read_lines(run.metrics_file)]


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
    """A signal comes while the loss is computed for the `at_call`-th training step."""
    calls = 0

    def squared(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled() and len(labels) > 1
        if calls == at_call:
            os.kill(os.getpid(), signal_number)
        return globals()["squared"](logits, labels)

    try:
        fit(loss=squared)
    except SystemExit as stopped:  # which would end the rank by itself, were it not for the tests' own rank program
        return int(str(stopped.code))
    return 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, EXIT_STOPPED)])
def test_interrupted_and_run_again_it_is_the_same_in_every_bit(
    whole: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    assert ranks.run(fit_and_die, number, 8, world_size=1, cwd=tmp_path) == [code]
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
    small = ["quickstart", {**CONFIG, "data": {"limit": 64}, "train": {"epochs": 1, "batch_size": 20}}]
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
    assert "must be the same on all ranks: seed what draws" in (run_in(tmp_path).logs / "rank-1.log").read_text()


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
    splits = [ImageSet(Fetched(images), torch.from_numpy(labels)) for images, labels in (arrays(), arrays(100, 30))]
    run = fit("data.image_size=16", dataset=trainlib.image_dataset(*splits, classes=["a", "b", "c"]))
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


def test_another_part_in_its_place_is_refused(whole: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(whole.path.parent.parent)
    digest = read_resolved(whole.config_file).data.name
    for parts, message in [
        ({"model": OtherNet}, "model.name: custom:Net there, custom:OtherNet now"),
        ({"loss": squared_mean}, "loss.name: custom:squared there, custom:squared_mean now"),
        ({"dataset": dataset(seed=5)}, f"data.name: {digest} there, custom:"),
    ]:
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


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return squared(logits, labels).sum()


def no_head(num_classes: int) -> nn.Module:
    return nn.Flatten()


def tied(num_classes: int) -> nn.Module:
    net = Net(num_classes)
    net.again = net.head
    return net


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a sum": ({"loss": summed}, "loss: gives .* for six samples and .* on average .* return the loss of each sample"),
    "a sum of all": ({"loss": lambda logits, labels: logits.sum()}, "loss: gives"),
    "class weights": ({"loss": nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))}, "loss: gives"),
    "dense targets": ({"loss": nn.MSELoss()}, "loss: "),
    "no logits": (
        {"model": no_head},
        r"Flatten gives \[2, 768\] for 2 images and 3 classes, must give logits \[2, 3\]",
    ),
    "another size": ({"model": nn.Sequential(nn.Flatten(), nn.Linear(5, 3))}, "cannot take images .2, 3, 16, 16.: "),
    "no module": ({"model": lambda num_classes: None}, "model: got a NoneType, must be a torch.nn.Module"),
    "shared memory": ({"model": tied}, "model: head.weight and again.weight share their memory"),
    "frozen": ({"model": Net(3).requires_grad_(False)}, "the model has no parameter that can be trained"),
}


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exact_is_refused_before_training(case: str, workdir: Path) -> None:
    parts, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        fit(**parts)
    assert not (workdir / "runs/own/metrics.jsonl").exists()


def test_one_image_and_batchnorm_is_refused(workdir: Path) -> None:
    norm = nn.Sequential(nn.Flatten(), nn.Linear(768, 3), nn.BatchNorm1d(3))
    with pytest.raises(UserError, match="cannot learn from 1 image"):
        fit("data.limit=17", model=norm)


def test_the_check_leaves_the_model_as_it_was(workdir: Path) -> None:
    """A forward pass of black images must not reach BatchNorm's statistics: those of a plain loop's first step."""
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768), nn.Linear(768, 3))
    classifier = build_custom(norm, 3)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    check_custom_model(classifier, 16, 3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())


def test_configuration_mistakes_are_told_in_the_same_words(workdir: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimizer.lrr: unknown key; did you mean optimizer.lr\?"):
        trainlib.fit("quickstart", "optimizer.lrr=3")
    with pytest.raises(ConfigError, match="must hold plain values, as a YAML file does"):
        trainlib.fit({"name": "x", "seed": Net})
    with pytest.raises(ConfigError, match="name: is missing"):
        trainlib.fit({"seed": 1})
    assert load_config([{"name": "x", "optimizer": {"name": "AdamW", "lr": np.float64(0.1), "betas": (0.9, 0.99)}}])
    assert not list(workdir.iterdir())


def test_the_public_names_and_no_torch_before_they_are_used() -> None:
    program = """
import sys, trainlib
assert "torch" not in sys.modules
print(*[getattr(trainlib, name).__name__ for name in trainlib.__all__])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == trainlib.__all__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        trainlib.trian  # noqa: B018
