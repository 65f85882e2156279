"""What a run depends on has changed: what is said for each change by each command, as docs/reliability.md has it.

The table of that page is read here, and every cell of it is tried.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import ranks
import tiny
from paths import REPOSITORY
from PIL import Image

from trainlib.training.checkpoints import checkpoint

COMMANDS = ("run", "resume", "eval", "verify")
QUICK = ("a picture added",)  # the others are slow


def evaluate() -> int:
    from trainlib.inference.evaluate import main

    return main(["run"])


def verify(folder: str) -> int:
    from trainlib.training.programs.verify import main

    return main(["runs/run", folder, "--steps", "2"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with images, and a run of two epochs with a checkpoint at every other step."""
    cwd = tmp_path_factory.mktemp("changes")
    tiny.make_images(cwd / "images")
    for image in (cwd / "images").rglob("*.png"):  # all files of one size
        Image.open(image).save(image.with_suffix(".bmp"))
        image.unlink()
    assert ranks.train(words(cwd), cwd=cwd) == [0], ranks.console(cwd)
    return cwd


def words(cwd: Path, *more: str) -> list[str]:
    return tiny.arguments(Path("images"), 2, 2, "checkpoint.keep=4", "scheduler=null", *more)


def in_manifests(cwd: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Change what every checkpoint says that it was made with, as if the machine had changed since."""
    for path in (cwd / "runs/run/checkpoints").glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        del manifest["sha256"]
        change(manifest)
        path.write_text(json.dumps(manifest | {"sha256": checkpoint._seal(manifest)}))


def was(name: str, value: object) -> Callable[[Path], list[str]]:
    def change(cwd: Path) -> list[str]:
        in_manifests(cwd, lambda manifest: manifest.update({name: value}))
        return []

    return change


def add_a_picture(cwd: Path) -> list[str]:
    shutil.copy(cwd / "images/train/a/00.bmp", cwd / "images/train/a/new.bmp")
    return []


def remove_a_picture(cwd: Path) -> list[str]:
    (cwd / "images/test/a/01.bmp").unlink()
    return []


def rename_a_class(cwd: Path) -> list[str]:
    for split in ("train", "test"):
        (cwd / "images" / split / "a").rename(cwd / "images" / split / "z")
    return []


def edit_a_picture(cwd: Path) -> list[str]:
    image = cwd / "images/train/a/00.bmp"
    times = image.stat().st_atime_ns, image.stat().st_mtime_ns
    image.write_bytes((cwd / "images/train/b/00.bmp").read_bytes())
    os.utime(image, ns=times)
    return []


def move_the_pictures(cwd: Path) -> list[str]:
    (cwd / "images").rename(cwd / "elsewhere")
    config = cwd / "runs/run/config.yaml"
    config.write_text(config.read_text().replace("root: images", "root: elsewhere"))
    in_manifests(cwd, lambda manifest: manifest["config"]["data"].update(root="elsewhere"))  # type: ignore[index]
    return ["data.root=elsewhere"]


def edit_the_configuration(cwd: Path) -> list[str]:
    config = cwd / "runs/run/config.yaml"
    config.write_text(config.read_text().replace("lr: 0.001", "lr: 0.002"))
    return ["optimizer.lr=0.002"]


def put_in_a_checkpoint_of_another_run(cwd: Path) -> list[str]:
    in_manifests(cwd, lambda manifest: manifest["config"].update(name="another", seed=1))  # type: ignore[attr-defined]
    return []


def earlier_version_of_torch(cwd: Path) -> list[str]:
    in_manifests(cwd, lambda manifest: manifest["versions"].update(torch="2.11.0"))  # type: ignore[attr-defined]
    return []


CHANGES: dict[str, Callable[[Path], list[str]]] = {
    "a picture added": add_a_picture,
    "a picture removed": remove_a_picture,
    "a class renamed": rename_a_class,
    "a picture edited, of the same size and times": edit_a_picture,
    "the pictures at another place": move_the_pictures,
    "config.yaml edited": edit_the_configuration,
    "a checkpoint of another run": put_in_a_checkpoint_of_another_run,
    "the code": was("code", "0" * 64),
    "a version": earlier_version_of_torch,
    "the number of threads": was("num_threads", 7),
    "the processor": was("device_name", "another processor"),
    "the device": was("device", "cuda"),
    "the number of processes": was("world_size", 2),
    "the length": lambda cwd: ["train.epochs=3"],
}


def table() -> dict[str, dict[str, str]]:
    """The cells of the table in docs/reliability.md, by change and command."""
    text = (REPOSITORY / "docs/reliability.md").read_text()
    section = text.split("## When something has changed\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    return {row[0]: dict(zip(COMMANDS, row[1:], strict=True)) for row in rows[2:]}


def cells() -> list[object]:
    return [
        pytest.param(change, command, id=f"{change}-{command}", marks=() if change in QUICK else pytest.mark.slow)
        for change in CHANGES
        for command in COMMANDS
    ]


def test_the_table_has_every_change_and_no_other() -> None:
    assert list(table()) == list(CHANGES)


@pytest.mark.parametrize(("change", "command"), cells())
def test_what_is_said(trained: Path, tmp_path: Path, change: str, command: str) -> None:
    cwd = tmp_path / "copy"
    shutil.copytree(trained, cwd)
    more = CHANGES[change](cwd)
    code, said = call(command, cwd, more)
    expected = table()[change][command].partition(":")[0]
    if expected == "refused":
        assert code == 2, said
        assert "Traceback" not in said
        return
    assert code == 0, said
    if command == "eval":  # it reads pictures where somebody's configuration says that they are
        assert re.search(r"the images are those in /.+/(images|elsewhere) \(data.root\)", said)
    match expected:
        case "exact":
            assert re.search(r"resuming from step \d+: exact", said)
        case "not bitwise":
            assert re.search(r"resuming from step \d+: not bitwise what .* gives: .* was .*, is ", said)
        case "told":
            assert "not those that the model was trained with" in said or "not as in the run" in said
        case _:
            assert expected == "nothing"
            assert "not " not in said


def call(command: str, cwd: Path, more: list[str]) -> tuple[int, str]:
    """Run a command on the run in `cwd`; return its exit code and all that it said."""
    match command:
        case "run":  # the run has not ended yet
            for lost in ("runs/run/summary.json", "runs/run/checkpoints/step-00000008"):
                path = cwd / lost
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            (code,) = ranks.train(words(cwd, *more), cwd=cwd)
        case "resume":
            longer = [] if any(word.startswith("train.epochs") for word in more) else ["train.epochs=3"]
            (code,) = ranks.train([*words(cwd, *more, *longer), "--resume"], cwd=cwd)
        case "eval":
            (code,) = ranks.run(evaluate, world_size=1, cwd=cwd)
        case _:
            folder = cwd / "records"
            folder.mkdir()
            (code,) = ranks.run(verify, str(folder), world_size=1, cwd=cwd)
            first = json.loads((folder / "1-0.jsonl").read_text().splitlines()[0])
            changed = first.get("changed")
            return code, f"not as in the run: {changed}" if changed else ranks.console(cwd)
    return code, ranks.console(cwd)
