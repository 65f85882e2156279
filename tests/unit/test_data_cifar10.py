"""CIFAR-10 from a small archive of the same form, whose checksums stand in for the real ones."""

from __future__ import annotations

import hashlib
import http.server
import pickle
import shutil
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10

from trainlib.config.schema.sections import DataConfig
from trainlib.data import Dataset, load_data
from trainlib.errors import DataError

PER_BATCH = 20
CLASS_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NO_SERVER = "http://127.0.0.1:9/cifar-10-python.tar.gz"


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive whose batches hold known pixels; CIFAR10's url and checksums are set to it."""
    folder = tmp_path / "source" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    train_names, test_names = [name for name, _ in CIFAR10.train_list], [name for name, _ in CIFAR10.test_list]
    for i, name in enumerate([*train_names, *test_names]):
        pixels = np.random.default_rng(i).integers(0, 256, (PER_BATCH, 3072), np.uint8)
        labels = [(i + j) % 10 for j in range(PER_BATCH)]
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": labels}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASS_NAMES}))
    path: Path = tmp_path / "source" / CIFAR10.filename
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(folder / name)] for name in train_names])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, md5(folder / name)] for name in test_names])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(folder / "batches.meta")})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(path))
    monkeypatch.setattr(CIFAR10, "url", NO_SERVER)
    return path


@pytest.fixture
def requests(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was asked of a local server that has the archive and that CIFAR10's url is set to."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            asked.append(self.path)

    handler = partial(Handler, directory=str(archive.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        yield asked
        server.shutdown()


def load(root: Path) -> Dataset:
    return load_data(DataConfig(name="cifar10", root=str(root)))


def check(dataset: Dataset) -> None:
    assert dataset.class_names == tuple(CLASS_NAMES)
    assert dataset.mean == (0.4914, 0.4822, 0.4465)
    assert dataset.std == (0.2470, 0.2435, 0.2616)
    for split, batches in ((dataset.train, range(5)), (dataset.test, range(5, 6))):
        images = next(split.images.batches([torch.arange(len(split.images))]))
        assert images.shape == (len(batches) * PER_BATCH, 3, 32, 32)
        for i, part in zip(batches, images.split(PER_BATCH), strict=True):
            pixels = np.random.default_rng(i).integers(0, 256, (PER_BATCH, 3072), np.uint8)
            np.testing.assert_array_equal(part.numpy().reshape(PER_BATCH, 3072), pixels)
        assert split.labels_N.tolist() == [(i + j) % 10 for i in batches for j in range(PER_BATCH)]
        assert split.labels_N.dtype == torch.int64


def test_it_is_downloaded_once_and_then_needs_no_network(
    requests: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(load(tmp_path / "data"))
    assert requests
    requests.clear()
    check(load(tmp_path / "data"))
    assert not requests
    assert capsys.readouterr().out == ""


def test_of_several_at_once_one_downloads(requests: list[str], tmp_path: Path) -> None:
    load(tmp_path / "alone")
    for_one = len(requests)  # one for redirections, one for the file
    results: list[Dataset] = []
    threads = [threading.Thread(target=lambda: results.append(load(tmp_path / "data"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(requests) == 2 * for_one
    assert len(results) == 3
    for result in results:
        check(result)


def test_an_archive_placed_by_hand_is_enough(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(archive, tmp_path / "data")
    check(load(tmp_path / "data"))


def test_no_network_is_one_error_with_three_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "url", NO_SERVER)
    with pytest.raises(DataError) as caught:
        load(tmp_path / "data")
    text = str(caught.value)
    assert f"not in {tmp_path / 'data'} and could not be downloaded from {NO_SERVER}" in text
    assert "cifar-10-python.tar.gz (MD5 c58f30108f718f92721af3b95e74349a)" in text
    assert "data.name=synthetic" in text
    assert "data.name=image_folder" in text


def test_a_download_with_a_wrong_checksum_is_refused(
    requests: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(DataError, match="corrupted"):
        load(tmp_path / "data")
    assert requests


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file.*data\.name=synthetic"):
        load(tmp_path / "file" / "data")


class Attack:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_a_file_with_a_wrong_checksum_is_never_unpickled(archive: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(archive.parent / CIFAR10.base_folder, tmp_path / "data" / CIFAR10.base_folder)
    check(load(tmp_path / "data"))
    (tmp_path / "data" / CIFAR10.base_folder / name).write_bytes(pickle.dumps(Attack(tmp_path / "executed")))
    with pytest.raises(DataError):
        load(tmp_path / "data")
    assert not (tmp_path / "executed").exists()
