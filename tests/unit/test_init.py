"""`launch init`: what it sees in a folder is what training sees, and the file that it writes is right."""

from __future__ import annotations

import errno
import io
import itertools
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from launch.cli import main
from trainlib.config import load_config
from trainlib.config.docs.json_schema import FILE
from trainlib.config.load import configs_folder
from trainlib.errors import UserError
from trainlib.training.programs.check import main as check
from trainlib.training.programs.data.new_config import Seen, write_new, yaml_text


def pictures(*folders: Path, count: int = 12, side: int = 48) -> None:
    draw = np.random.default_rng(0).integers
    for folder, index in itertools.product(folders, range(count)):
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(0, 256, (side, side + 8, 3), dtype=np.uint8)).save(folder / f"{index}.png")


def written(name: str) -> dict[str, object]:
    values = yaml.safe_load(Path(name).read_text())["data"]
    assert isinstance(values, dict)
    return values


def undivided(root: Path) -> dict[str, object]:
    pictures(root / "cats", root / "dogs")
    return {"name": "image_folder", "test_fraction": 0.2, "val_fraction": 0.2}


def divided(root: Path) -> dict[str, object]:
    pictures(*(root / split / name for split in ("train", "valid", "test") for name in ("cats", "dogs")))
    return {"name": "image_folder"}


def without_validation(root: Path) -> dict[str, object]:
    pictures(*(root / split / name for split in ("train", "test") for name in ("cats", "dogs")))
    return {"name": "image_folder", "val_fraction": 0.2}


def table(root: Path) -> dict[str, object]:
    pictures(root / "images")
    lines = [f"images/{i}.png,{'cats' if i % 2 else 'dogs'}" for i in range(12)]
    (root / "labels.csv").write_text("\n".join(["path,label", *lines]) + "\n")
    return {"name": "table", "table": f"{root.name}/labels.csv", "test_fraction": 0.2, "val_fraction": 0.2}


def table_of_sets(root: Path) -> dict[str, object]:
    expected = table(root)
    text = (root / "labels.csv").read_text()
    (root / "labels.csv").write_text(text.replace(",cats", ",cats;pets"))
    return expected | {"labels": "several"}


def shards(root: Path) -> dict[str, object]:
    pictures(root / "cats", root / "dogs")
    with tarfile.open(root / "0.tar", "w") as shard:
        for name in ("cats", "dogs"):
            shard.add(root / name, name)
            for file in (root / name).iterdir():
                file.unlink()
            (root / name).rmdir()
    return {"name": "archive", "test_fraction": 0.2, "val_fraction": 0.2}


@pytest.mark.parametrize("make", [undivided, divided, without_validation, table, table_of_sets, shards])
def test_a_layout_is_seen_and_the_file_passes_the_check(
    make: object, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(make)
    expected = make(workdir / "photos")
    assert main(["init", "photos"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("photos.yaml: ")
    assert "next: launch run photos.yaml\n" in told.err
    found = written("photos.yaml")
    assert {key: found[key] for key in expected} == expected
    assert {"test_fraction", "val_fraction"} & found.keys() == {"test_fraction", "val_fraction"} & expected.keys()
    assert found["root"] == "photos"
    assert found["image_size"] == 128
    assert load_config(["photos.yaml"]).name == "photos"
    assert check(["photos.yaml"]) == 0


def test_the_first_line_names_the_schema_for_editors(workdir: Path) -> None:
    undivided(workdir / "photos")
    assert main(["init", "photos"]) == 0
    first = (workdir / "photos.yaml").read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={configs_folder() / FILE}"
    assert (configs_folder() / FILE).is_file()


def one_class(root: Path) -> str:
    pictures(root / "cats")
    return "has one class folder only, 'cats'"


def damaged(root: Path) -> str:
    pictures(root / "cats", root / "dogs")
    (root / "dogs/3.png").write_bytes((root / "dogs/3.png").read_bytes()[:200])
    return "1 of 24 pictures that were looked at cannot be read: "


def empty(root: Path) -> str:
    root.mkdir()
    return "photos holds no folders of pictures. The layout is photos/train/<class>/<image>"


def loose(root: Path) -> str:
    pictures(root)
    return "photos holds no folders of pictures. The layout is photos/train/<class>/<image>"


def a_picture(root: Path) -> str:
    pictures(root.parent / "other")
    (root.parent / "other/0.png").rename(root)
    return "photos: is a file, must be a folder of pictures, an archive (.tar) or a table (.csv)"


def two_tables(root: Path) -> str:
    table(root)
    (root / "more.csv").write_text("path,label\nimages/0.png,cats\n")
    return "type launch init photos/labels.csv or launch init photos/more.csv"


def missing(root: Path) -> str:
    (root.parent / "photo").mkdir()
    return "photos: there is no such folder; did you mean photo?"


def there_already(root: Path) -> str:
    undivided(root)
    (root.parent / "photos.yaml").write_text("mine")
    return "photos.yaml exists already, and is not written over: launch run photos.yaml uses it"


@pytest.mark.parametrize("make", [one_class, damaged, empty, loose, a_picture, two_tables, missing, there_already])
def test_what_cannot_be_trained_on_is_told(make: object, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(make)
    message = make(workdir / "photos")
    before = {path: path.read_bytes() for path in workdir.glob("*.yaml")}
    assert main(["init", "photos"]) == 2
    told = capsys.readouterr()
    assert "error: " in told.err
    assert message in told.err.replace(f"{workdir}/", "")
    assert told.out == ""
    assert {path: path.read_bytes() for path in workdir.glob("*.yaml")} == before


@pytest.mark.parametrize(
    "name", ["my photos", "2024", "1e3", "null", "größe", "a=b", "-x", "fotos: neu", "#1", "a\nb\x1b[1m"]
)
def test_any_name_of_a_folder_will_do(name: str, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(workdir / name / "cats", workdir / name / "dogs")
    assert main(["init", "--", name]) == 0
    file = workdir / f"{name}.yaml"
    assert load_config([f"./{file.name}"]).data.root == name
    told = capsys.readouterr().err
    assert "next: launch run " in told
    assert "\x1b" not in told


def test_a_name_that_no_configuration_holds_is_told(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(workdir / "fotos\udce4" / "cats", workdir / "fotos\udce4" / "dogs")  # as it is written in Latin-1
    assert main(["init", "fotos\udce4"]) == 2
    assert "error: fotos\\xe4: no configuration can hold this name: rename it" in capsys.readouterr().err
    assert not list(workdir.glob("*.yaml"))


def test_a_folder_that_cannot_be_written(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(UserError, match=r"x\.yaml: cannot be written: .*Read-only file system"):
        write_new(Path("x.yaml"), "seed: 0\n")


def test_a_full_disk_leaves_no_empty_file(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def make(file: Path, *_: str, **__: str) -> Full:
        file.touch()
        return Full()

    monkeypatch.setattr(Path, "open", make)
    with pytest.raises(UserError, match=r"x\.yaml: cannot be written: .*No space left"):
        write_new(Path("x.yaml"), "seed: 0\n")
    assert not list(workdir.iterdir())


@pytest.mark.parametrize(
    ("train", "side", "batch_size", "epochs", "image_size"),
    [
        (60, 3000, 8, 30, 224),
        (600, 3000, 16, 27, 224),
        (3_000, 200, 32, 11, 224),
        (50_000, 32, 32, 10, 128),
        (1_000, 150, 32, 30, 160),
        (2, 20, 8, 30, 128),
    ],
)
def test_sizes_follow_from_what_is_there(train: int, side: int, batch_size: int, epochs: int, image_size: int) -> None:
    """The rule of docs/data.md: 20 steps an epoch at least, 1,000 steps, small pictures enlarged to 128 pixels."""
    seen = Seen({"name": "image_folder", "root": "x"}, {"train": train, "val": 5, "test": 5}, {"a": 9, "b": 9}, side)
    assert (seen.batch_size, seen.epochs, seen.image_size) == (batch_size, epochs, image_size)
    values = yaml.safe_load(yaml_text(seen, "x", "x.yaml"))
    assert values["train"]["batch_size"] == batch_size
    assert values["model"]["weights"] == "pretrained"
    assert ("policy" in values["data"]["augment"]) == (train < 500)  # of the recipe for little data
