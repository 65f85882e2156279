"""`launch data`: planted duplicates, leaks and damage are found; hashes against a plain comparison of all pairs."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import REPOSITORY
from patience import HANG
from PIL import Image

from launch.cli import main as launch
from trainlib.data.survey.duplicates import MOST_DIFFERENT, exact_groups, near_groups

CONFIG = ["quickstart", "data={name: image_folder, root: pictures, image_size: 32}"]


def save(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    """A smooth picture of its own: large blots, whose perceptual hash survives another encoding."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """120 pictures of two classes for training and 20 for the test, with one of each kind of trouble."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "pictures"
    counts = {"train/ant": 100, "train/bee": 20, "test/ant": 10, "test/bee": 10}
    for number, (folder, count) in enumerate(counts.items()):
        for index in range(count):
            save(root / folder / f"{index:03d}.png", 1000 * number + index)
    copies = {
        "train/ant/007.png": "test/ant/leak.png",
        "train/ant/011.png": "train/bee/contrary.png",
        "train/bee/002.png": "train/bee/again.png",
    }
    for source, target in copies.items():
        (root / target).write_bytes((root / source).read_bytes())
    Image.open(root / "train/ant/050.png").save(root / "test/ant/alike.jpg", quality=92)
    (root / "train/ant/cut.png").write_bytes((root / "train/ant/001.png").read_bytes()[:-200])
    (root / "train/ant/<b>no.jpg").write_bytes(b"no picture")
    Image.new("L", (64, 64), 9).save(root / "train/ant/grey.png")
    return root


def facts_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert launch(["data", *CONFIG, "--json", *words]) == 0
    return dict(json.loads(capsys.readouterr().out))


def names(group: dict[str, Any]) -> list[str]:
    return [sample["name"] for sample in group["samples"]]


def test_all_that_was_planted_is_found(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = facts_of(capsys)
    assert facts["count"] == 147
    assert {row["name"]: row["train"] + row["val"] for row in facts["classes"]} == {"ant": 103, "bee": 22}
    assert {sample["name"] for sample in facts["damaged"]} == {"train/ant/cut.png", "train/ant/<b>no.jpg"}
    assert all(sample["reason"] for sample in facts["damaged"])
    assert sorted(map(names, facts["duplicates"])) == [
        ["train/ant/007.png", "test/ant/leak.png"],
        ["train/ant/011.png", "train/bee/contrary.png"],
        ["train/bee/002.png", "train/bee/again.png"],
    ]
    assert "test" in facts["duplicates"][0]["splits"], "a leak into the test comes first"
    assert [group["classes"] for group in facts["duplicates"] if len(group["classes"]) > 1] == [["ant", "bee"]]
    assert ["train/ant/050.png", "test/ant/alike.jpg"] in [names(group) for group in facts["near_duplicates"]]
    assert facts["modes"] == {"RGB": 145, "L": 1}
    assert facts["sizes"]["largest"] == [64, 64]
    told = " ".join(facts["warnings"])
    for words in ("2 pictures are damaged", "in more than one split", "in more than one class", "validation pictures"):
        assert words in told


def test_the_table_and_the_page(planted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(["data", *CONFIG, "--html", "page.html", "--batch", "b.png"]) == 2, "no batch of damaged pictures"
    out, err = capsys.readouterr()
    assert "train/ant/cut.png: " in err
    assert not (tmp_path / "b.png").exists()
    assert "train/ant/cut.png (ant): " in out
    assert "test: test/ant/leak.png (ant)" in out
    page = (tmp_path / "page.html").read_text()
    assert "&lt;b&gt;no.jpg" in page
    assert "<b>no.jpg" not in page
    assert page.count('src="data:image/') > 20
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "default-src &#39;none&#39;" in page


def test_without_imagehash_the_extra_is_named(
    planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert launch(["data", *CONFIG, "--html", "page.html"]) == 0
    assert "pip install 'trainlaunch[duplicates]'" in capsys.readouterr().out
    assert "trainlaunch[duplicates]" in (planted.parent / "page.html").read_text()


def test_data_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of one array: the same pixels are an exact duplicate."""
    import torch

    from trainlib.data.datasets.images import InMemoryImages
    from trainlib.data.survey.looking import ArrayPictures, look_at_all

    images_NCHW = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    images_NCHW[4] = images_NCHW[1]
    source = ArrayPictures([InMemoryImages(images_NCHW[:3]), InMemoryImages(images_NCHW[3:])])
    looks = look_at_all(source, 6, None, lambda done: None)
    assert exact_groups(looks.content_N, looks.whole()) == [[1, 4]]
    assert looks.damaged == {}
    assert torch.equal(source.picture(source.stored(5), 1), images_NCHW[5])


def test_check_warns_of_leaks(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(["check", *CONFIG]) == 0
    told = capsys.readouterr().err
    assert "warning: 1 pictures of the test split are also in the training images" in told
    assert "test/ant/leak.png is train/ant/007.png" in told
    (planted / "test/ant/leak.png").unlink()
    assert launch(["check", *CONFIG]) == 0
    assert "test split" not in capsys.readouterr().err


def test_check_says_what_it_did_not_look_at(
    planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainlib.data.survey import leaks

    monkeypatch.setattr(leaks, "MOST_BYTES", 10)
    assert launch(["check", *CONFIG]) == 0
    assert "was not looked at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--batch", "b.jpg"], "--batch: got b.jpg, must end in .png"),
        (["--html", "nowhere/page.html"], "--html: nowhere is no folder"),
        (["--batch", "nowhere/b.png"], "--batch: nowhere is no folder"),
        (["data.root=nowhere"], "nowhere does not exist"),
        (["sead=1"], "sead: unknown key"),
    ],
)
def test_mistakes(planted: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert launch(["data", *CONFIG, *words]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""


@pytest.mark.slow
def test_a_decoder_that_does_not_return_does_not_keep_ctrl_c_waiting(planted: Path) -> None:
    program = """
import os, signal, sys, threading, time
from launch.cli import program
from trainlib.data.survey import looking
inside = threading.Semaphore(1)
def hang(*args, **kwargs):
    if inside.acquire(blocking=False):
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(3600)
looking.decode_picture = hang
program()
"""
    command = [sys.executable, "-c", program, "data", *CONFIG]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=HANG)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert "Traceback" not in done.stderr


def test_near_groups_are_those_of_all_pairs() -> None:
    """Hashes a few bits apart, some of pictures that are the same, some damaged."""
    generator = np.random.default_rng(0)
    shows_N = generator.integers(0, 2**63, 300).astype(np.uint64)
    for target in range(0, 150, 3):
        flips = sum(1 << int(bit) for bit in generator.choice(64, int(generator.integers(0, 6)), replace=False))
        shows_N[target] = shows_N[target + 150] ^ np.uint64(flips)
    content_N = generator.integers(0, 256, (300, 32)).astype(np.uint8)
    content_N[299] = content_N[298]
    shows_N[299] = shows_N[298]
    whole_N = np.ones(300, bool)
    whole_N[3] = False
    alive = [i for i in range(299) if i != 3]
    root = {i: i for i in alive}
    for i, j in itertools.combinations(alive, 2):
        if (int(shows_N[i]) ^ int(shows_N[j])).bit_count() <= MOST_DIFFERENT:
            old = root[j]
            root = {key: root[i] if value == old else value for key, value in root.items()}
    groups: dict[int, list[int]] = {}
    for index in alive:
        groups.setdefault(root[index], []).append(index)
    assert near_groups(shows_N, content_N, whole_N) == sorted(g for g in groups.values() if len(g) > 1)
    assert exact_groups(content_N, whole_N) == [[298, 299]]
