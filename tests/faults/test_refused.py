"""A refusal changes nothing: each file of the run is the same, and so is its state; a new run leaves none."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from locks import owning

from launch.cli import main
from trainlib.runs.attempt.status import read_run
from trainlib.runs.directory import RunDirectory

RUN = Path("runs/run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs that is complete, and its images."""
    folder = tmp_path_factory.mktemp("finished")
    tiny.make_images(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", *training()]) == 0
    return folder


@pytest.fixture
def workdir(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(finished, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def training(epochs: int = 2) -> list[str]:
    return tiny.arguments(Path("images"), epochs, 4, "tracking.progress=false", "scheduler=null")


def snapshot(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file, and the kind of everything else."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def damage_newest(workdir: Path) -> None:
    newest = max((workdir / RUN / "checkpoints").glob("step-*"))
    (newest / "trainer.pt").write_bytes(b"x")


def edit_config(workdir: Path) -> None:
    file = workdir / RUN / "config.yaml"
    file.write_text(file.read_text().replace("batch_size: 12", "batch_size: 6"))


def remove_image(workdir: Path) -> None:
    next(workdir.glob("images/train/a/*.png")).unlink()


def damage_newest_and_remove_image(workdir: Path) -> None:
    damage_newest(workdir)
    remove_image(workdir)


def damage_image(workdir: Path) -> None:
    next(workdir.glob("images/train/a/*.png")).write_bytes(b"no image")


def remove_images(workdir: Path) -> None:
    shutil.rmtree(workdir / "images")


def litter(workdir: Path) -> None:
    """What a kill left, which a start that begins cleans up."""
    (workdir / RUN / "checkpoints/.tmp-step-00000099").mkdir()
    (workdir / RUN / "STOP").write_text("launch stop\n")
    (workdir / RUN / "owner.json").write_text('{"id": "of a process that was killed"}')


def nothing(workdir: Path) -> None:
    """Leave all as it is."""


REFUSED: dict[str, tuple[list[str], Callable[[Path], None]]] = {
    "fewer epochs": (["train.epochs=1", "--resume"], nothing),
    "finished": ([], nothing),
    "finished, with a harmless change": (["tracking.log_every=7", "--resume"], nothing),
    "another configuration": (["optimizer.lr=0.5", "train.epochs=3", "--resume"], nothing),
    "config.yaml was edited": (["train={epochs: 3, batch_size: 6}", "--resume"], edit_config),
    "no such checkpoint": (["--resume", "step-00000099"], nothing),
    "a damaged checkpoint": (["--resume", "step-00000008"], damage_newest),
    "other data, after a damaged checkpoint": (["train.epochs=3", "--resume"], damage_newest_and_remove_image),
    "fewer epochs, after a kill": (["train.epochs=1", "--resume"], litter),
    "other data": (["train.epochs=3", "--resume"], remove_image),
    "damaged data": (["train.epochs=3", "--resume"], damage_image),
    "no data": (["train.epochs=3", "--resume"], remove_images),
    "no data, begun again": (["--fresh"], remove_images),
    "another model cannot be built": (["--fresh", "model={name: vgg16, weights: nowhere.pt}"], nothing),
    "a mistake in the configuration": (["train.epoch=3", "--resume"], nothing),
    "another name, no data": (["name=other"], remove_images),
}


QUICK = (
    "other data, after a damaged checkpoint",
    "another name, no data",
)  # of each kind


@pytest.mark.parametrize(
    ("words", "happens"),
    [pytest.param(*REFUSED[name], id=name, marks=() if name in QUICK else pytest.mark.slow) for name in REFUSED],
)
def test_a_refused_start_changes_nothing(
    workdir: Path, words: list[str], happens: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    happens(workdir)
    before, status = snapshot(workdir / "runs"), read_run(RUN).status
    assert main(["run", *training(), *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert snapshot(workdir / "runs") == before
    assert read_run(RUN).status == status == "completed"


def test_a_start_beside_another_is_refused_and_changes_nothing(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with owning(RUN):
        before = snapshot(RUN)
        for words in (["train.epochs=3", "--resume"], ["--fresh"]):
            assert main(["run", *training(), *words]) == 2
            assert "in use: process" in capsys.readouterr().err
            assert snapshot(RUN) == before


def test_what_was_refused_goes_on_once_it_is_mended(workdir: Path) -> None:
    damage_newest(workdir)
    (workdir / "images").rename(workdir / "elsewhere")
    assert main(["run", *training(3), "--resume"]) == 2
    (workdir / "elsewhere").rename(workdir / "images")
    assert main(["run", *training(3), "--resume"]) == 0
    assert [line["from_step"] for line in tiny.attempts(workdir, "start")] == [0, 4]
    assert (RUN / "checkpoints/step-00000008.damaged").is_dir()
    assert RunDirectory(RUN).summary()["step"] == 12


@pytest.mark.slow
def test_refused_in_several_ranks(workdir: Path) -> None:
    before = snapshot(RUN)
    launcher = tiny.launch([*training(), "train.epochs=1", "--resume"], workdir)
    assert launcher.wait(timeout=120) == 2
    assert snapshot(RUN) == before
    assert "already trained 8 steps" in (workdir / "console.txt").read_text()
