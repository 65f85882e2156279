"""Whatever form the data have, a run that goes on, or another rank, is refused what is not the same, by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from archives import tar, zipped
from class_folders import save_classes

from trainlib.config.schema.sections import DataConfig
from trainlib.data import load_data
from trainlib.data.identity.listing import Listing, changes
from trainlib.data.sources.packed.pack import pack


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))


def as_folder(photos: Path, out: Path) -> dict[str, str]:
    shutil.copytree(photos, out / "photos", copy_function=shutil.copy)
    return {"name": "image_folder", "root": str(out / "photos")}


def as_table(photos: Path, out: Path) -> dict[str, str]:
    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.rglob("*.png"))]
    (out / "t.csv").write_text("path,label\n" + "\n".join(rows))
    return {"name": "table", "table": str(out / "t.csv"), "root": as_folder(photos, out)["root"]}


def as_tar(photos: Path, out: Path) -> dict[str, str]:
    return {"name": "archive", "root": str(tar(photos, out / "a.tar"))}


def as_zip(photos: Path, out: Path) -> dict[str, str]:
    return {"name": "archive", "root": str(zipped(photos, out / "a.zip"))}


def as_shards(photos: Path, out: Path) -> dict[str, str]:
    pack(photos, out / "shards", 1_000)
    return {"name": "archive", "root": str(out / "shards")}


def as_hf(photos: Path, out: Path) -> dict[str, str]:
    datasets = pytest.importorskip("datasets")
    paths = sorted(photos.rglob("*.png"))
    names = sorted({path.parent.name for path in paths})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    cells = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    values = {"image": cells, "label": [path.parent.name for path in paths]}
    datasets.Dataset.from_dict(values, features=features).save_to_disk(str(out / "hf"))
    return {"name": "hf", "root": str(out / "hf")}


FORMS = [as_folder, as_table, as_tar, as_zip, as_shards, as_hf]


def edit(photos: Path) -> None:
    """Other pixels in a file of the same name and size."""
    picture = photos / "cat/000.png"
    other = next(
        p for p in sorted(photos.rglob("*.png")) if p.stat().st_size == picture.stat().st_size and p != picture
    )
    picture.write_bytes(other.read_bytes())


def rename(photos: Path) -> None:
    (photos / "cat").rename(photos / "kitten")


def remove(photos: Path) -> None:
    (photos / "dog/011.png").unlink()


@pytest.mark.parametrize(("change", "named"), [(edit, "with other bytes"), (rename, "kitten"), (remove, "removed")])
@pytest.mark.parametrize("form", FORMS)
def test_a_change_is_named(
    tmp_path: Path, form: Callable[[Path, Path], dict[str, str]], change: Callable[[Path], None], named: str
) -> None:
    def listing(out: str) -> Listing:
        (tmp_path / out).mkdir()
        values = {**form(tmp_path / "photos", tmp_path / out), "image_size": 12}
        return load_data(DataConfig.model_validate(values)).listing

    save_classes(tmp_path / "photos", {"cat": 12, "dog": 12})
    before, moved = listing("before"), listing("elsewhere")
    assert changes(before, moved) == []
    assert moved.facts == before.facts
    change(tmp_path / "photos")
    after = listing("after")
    assert named in " ".join(changes(before, after))
    assert after.facts != before.facts
