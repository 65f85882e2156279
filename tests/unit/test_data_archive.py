"""Archives of pictures: what Python's tarfile and zipfile write is read in place, and hostile ones never lead out."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from archives import packed, tar, tar_of_each_split, zipped
from class_folders import save_classes, save_picture

from trainlib.config.schema.sections import DataConfig
from trainlib.data import Dataset, load_data
from trainlib.data.sources.folders.image_folder import list_image_folder
from trainlib.data.sources.packed.archive import list_archive
from trainlib.data.sources.packed.members import ArchiveFiles
from trainlib.data.sources.packed.pack import pack
from trainlib.data.sources.packed.tar import list_tar
from trainlib.errors import DataError


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRAINLAUNCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    save_classes(root / "train", {"cat": 6, "Dog é": 7})
    save_classes(root / "val", {"cat": 2, "Dog é": 3}, start=50)
    save_classes(root / "test", {"cat": 2, "Dog é": 1}, start=70)
    save_picture(root / "train/cat" / ("deep/" * 12) / f"{'long' * 25}.png")
    (root / "train/cat/notes.txt").write_text("no picture")
    return root


def load(root: Path, name: str = "archive") -> Dataset:
    return load_data(DataConfig.model_validate({"name": name, "root": str(root), "image_size": 12}))


WRITERS: dict[str, Callable[[Path, Path], Path]] = {
    "ustar": lambda folder, out: tar(folder, out / "a.tar", format=tarfile.PAX_FORMAT),
    "gnu, in a folder": lambda folder, out: tar(folder, out / "a.tar", "photos", format=tarfile.GNU_FORMAT),
    "zip": lambda folder, out: zipped(folder, out / "a.zip"),
    "deflated, in a folder": lambda folder, out: zipped(folder, out / "a.zip", "photos", zipfile.ZIP_DEFLATED),
    "packed": packed,
    "a tar for each split": tar_of_each_split,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_an_archive_holds_what_its_folder_holds(folder: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "out").mkdir()
    expected, found = load(folder, "image_folder"), load(WRITERS[kind](folder, tmp_path / "out"))
    assert found.class_names == expected.class_names
    for split in ("train", "test"):
        ours, theirs = getattr(found, split), getattr(expected, split)
        assert torch.equal(ours.labels_N, theirs.labels_N)
        ids = torch.arange(len(ours.labels_N))
        assert torch.equal(next(ours.images.batches([ids])), next(theirs.images.batches([ids])))
    assert found.train.identities_N is not None
    assert expected.train.identities_N is not None
    assert torch.equal(found.train.identities_N, expected.train.identities_N)
    assert [(f.name, f.label, f.sha256) for f in found.listing.files] == [
        (f.name, f.label, f.sha256) for f in expected.listing.files
    ]


@pytest.mark.parametrize(
    ("system", "stored", "name"),
    [(3, "Zo\xe9".encode(), "Zoé"), (0, "Zoé".encode("cp437"), "Zoé"), (0, b"Zo\\deep", "Zo"), (3, b"Z\\oe", "Z\\oe")],
)
def test_a_zip_of_macos_or_windows_has_the_names_of_its_folders(
    tmp_path: Path, system: int, stored: bytes, name: str
) -> None:
    """macOS and Linux's `zip` write UTF-8 without saying so, some of Windows its own letters and backslashes."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for folder in ("ant", "#" * len(stored)):
            info = zipfile.ZipInfo(f"{folder}/1.png")
            info.create_system = system
            file.writestr(info, b"x")
    content = (tmp_path / "a.zip").read_bytes().replace(b"#" * len(stored), stored)
    (tmp_path / "a.zip").write_bytes(content)
    assert list_archive(tmp_path / "a.zip").classes == tuple(sorted(["ant", name]))


def test_members_are_read_as_tarfile_reads_them(folder: Path, tmp_path: Path) -> None:
    os.link(folder / "train/cat/000.png", folder / "train/cat/linked.png")
    path = tar(folder, tmp_path / "a.tar")
    archive = list_tar(path)
    files = ArchiveFiles([archive], [(0, member) for member in archive.members.values()])
    with tarfile.open(path) as expected:
        members = [member for member in expected if not member.isdir()]
        assert {os.path.normpath(member.name) for member in members} == set(archive.members)
        for index, name in enumerate(archive.members):
            content = expected.extractfile(f"./{name}")
            assert content is not None
            assert files.read(index) == content.read()


def test_packing_gives_the_same_bytes_and_keeps_what_is_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack(folder, tmp_path / "one", 2_000) == 22
    assert capsys.readouterr().err.startswith("note: Files left out, not images by their names")
    os.utime(folder / "train/cat/000.png", (0, 0))
    pack(folder, tmp_path / "two", 2_000)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert first == second
    assert len(first) > 3
    with pytest.raises(DataError, match="exists already"):
        pack(folder, tmp_path / "one")
    with pytest.raises(DataError, match="choose a place outside"):
        pack(folder, folder / "shards")
    assert sorted(p.name for p in tmp_path.iterdir() if "partial" in p.name) == []


@pytest.mark.parametrize("change", ["a shard less", "a shard more", "a shard cut", "the index cut"])
def test_shards_that_are_not_those_of_the_index(folder: Path, tmp_path: Path, change: str) -> None:
    pack(folder, tmp_path / "shards", 2_000)
    first = tmp_path / "shards/shard-00000.tar"
    if change == "a shard less":
        first.unlink()
    elif change == "a shard more":
        first.with_name("shard-9.tar").write_bytes(first.read_bytes())
    elif change == "a shard cut":
        os.truncate(first, 1024)
    else:
        index = first.with_name("index.jsonl")
        index.write_text("".join(index.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="does not fit its shards"):
        list_archive(tmp_path / "shards")


def webdataset(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> None:
    """Write a shard as webdataset's TarWriter does: the parts of a sample one after the other, key.ending each."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for key, parts in samples:
            for ending, content in parts.items():
                header = tarfile.TarInfo(f"{key}.{ending}")
                header.size = len(content)
                file.addfile(header, io.BytesIO(content))


@pytest.mark.parametrize("folders", ["", "{}/"])  # of shards: names of files may be counted anew in each
@pytest.mark.parametrize(("form", "ending"), [("png", "cls"), ("JPEG", "JSON"), ("webp", "json")])
def test_shards_of_webdataset(tmp_path: Path, form: str, ending: str, folders: str) -> None:
    shards = tmp_path / "shards"
    pictures: list[bytes] = []
    for shard in range(3):
        samples = []
        for i in range(8):
            number = len(pictures)
            picture = save_picture(tmp_path / f"{number}.png").read_bytes()
            pictures.append(picture)
            label = str(number % 11).encode()
            content = label if ending == "cls" else json.dumps({"label": number % 11, "w": 12}).encode()
            samples.append((f"{i:04}", {form: picture, ending: content}))  # keys are counted anew in each shard
            samples.append((f"._{i:04}", {form: b"of macOS", ending: b"of macOS"}))
        path = shards / (f"part{shard}/0.tar" if folders else f"train-{shard:04}.TAR")
        path.parent.mkdir(parents=True, exist_ok=True)
        webdataset(path, samples)
    found = list_archive(shards)
    assert found.notices == ()
    assert found.classes == tuple(map(str, range(11)))
    assert sorted(found.files.read(i) for i in range(24)) == sorted(pictures)
    for i, label in enumerate(found.labels_N.tolist()):
        assert pictures.index(found.files.read(i)) % 11 == label


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"png": b"x"}, r"1 picture\(s\) have no label"),
        ({"png": b"x", "jpg": b"y", "cls": b"1"}, r"1 picture\(s\) have no label, or share one"),
        ({"png": b"x", "cls": b"../up"}, "must be a number or a name without a slash"),
        ({"png": b"x", "json": b'{"name": 3}'}, "must be an object with one of label, cls"),
        ({"png": b"x", "json": b"[" * 100_000}, "is no label"),
        ({"png": b"x", "cls": b"1" * (1 << 21)}, "is no label: it has more than"),
    ],
)
def test_a_label_that_is_none(tmp_path: Path, parts: dict[str, bytes], message: str) -> None:
    webdataset(tmp_path / "a.tar", [("0", {"png": b"p", "cls": b"0"}), ("1", parts)])
    with pytest.raises(DataError, match=message):
        list_archive(tmp_path / "a.tar")


def test_what_is_said_of_a_picture_in_a_class_folder_is_no_label(tmp_path: Path) -> None:
    samples = [(f"{name}/{i}", {"jpg": b"x", "json": b'{"boxes": []}'}) for name in ("cat", "dog") for i in range(2)]
    webdataset(tmp_path / "a.tar", samples)
    found = list_archive(tmp_path / "a.tar")
    assert found.classes == ("cat", "dog")
    assert "(4)" in str(found.notices)


def test_a_split_may_stand_within_the_name_of_a_shard(folder: Path, tmp_path: Path) -> None:
    """As in webdataset's: validation must not be trained on."""
    (tmp_path / "out").mkdir()
    for split, name in {"train": "train", "val": "validation", "test": "test"}.items():
        tar(folder / split, tmp_path / "out" / f"pets-{name}-0000.tar")
    found = list_archive(tmp_path / "out")
    assert dict(found.counts) == {"train": 14, "val": 5, "test": 3}
    shutil.copy(tmp_path / "out/pets-test-0000.tar", tmp_path / "out/more.tar")
    with pytest.raises(DataError, match=r"others that are not: more\.tar\. Name each after its split"):
        list_archive(tmp_path / "out")


def test_links_to_folders_of_shards_are_followed_but_not_in_circles(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        (tmp_path / "stored" / split).mkdir(parents=True)
        tar(folder / split, tmp_path / "stored" / split / "0.tar")
    links = tmp_path / "links"
    links.mkdir()
    for split in ("train", "val", "test"):
        (links / split).symlink_to(tmp_path / "stored" / split)
    (tmp_path / "stored/test/back").symlink_to(links)
    (tmp_path / "stored/test/out").symlink_to(tmp_path)
    assert list(list_archive(links).full_names()) == list(list_image_folder(folder).full_names())


def test_links_and_devices_are_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "train/cat/link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "train/cat/pipe.png")
    found = list_archive(tar(folder, tmp_path / "a.tar"))
    assert len(found) == 22
    assert "train/cat/link.png (a link or a device)" in str(found.notices)
    assert "train/cat/pipe.png (a link or a device)" in str(found.notices)


def test_junk_and_hidden_pictures_are_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    before = list_archive(tar(folder, tmp_path / "a.tar")).names
    for name in ("__MACOSX/cat/1.png", "train/cat/.thumbnails/1.png", "train/cat/.hidden.png", "train/cat/._1.png"):
        save_picture(folder / name)
    samples = list_archive(tar(folder, tmp_path / "b.tar"))
    assert list(samples.names) == list(before)
    sentence = next(text for _, text in samples.notices if text.startswith("Left out, hidden"))
    assert "(3): __MACOSX, train/cat/.hidden.png, train/cat/.thumbnails." in sentence


def test_an_archive_that_changes_while_it_is_read(folder: Path, tmp_path: Path) -> None:
    path = tar(folder, tmp_path / "a.tar")
    found = list_archive(path)
    with path.open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(OSError, match="changed since its members were listed"):
        found.files.read(0)
    assert found.files.describe(0).startswith(f"{path}:train/")


def test_a_folder_without_archives_names_the_other_layout(folder: Path) -> None:
    with pytest.raises(DataError, match=r"set data\.name=image_folder"):
        list_archive(folder)


def test_a_name_in_two_shards_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("a", "b"):
        tar(folder, tmp_path / "out" / f"{name}.tar")
    with pytest.raises(DataError, match="and in another archive"):
        list_archive(tmp_path / "out")


def test_names_and_order_do_not_depend_on_the_shards(folder: Path, tmp_path: Path) -> None:
    expected = list_image_folder(folder)
    for size in (1, 3_000, 10**9):
        pack(folder, tmp_path / f"s{size}", size)
        assert list(list_archive(tmp_path / f"s{size}").full_names()) == list(expected.full_names())
