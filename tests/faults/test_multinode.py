"""Several machines without SLURM: two network namespaces, each a host with an address of its own and a shared disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest
import ranks
import tiny
from needs import need
from paths import REPOSITORY
from patience import HANG, wait_until
from soak import only_in_soak

from launch.local.start.network import interface_to, parse_head
from trainlib.errors import UserError
from trainlib.runs.attempt.secret import make_secret, secret_file
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import read_lines

pytestmark = pytest.mark.slow

ADDRESSES = ("10.77.0.1", "10.77.0.2")
TRAINING = [
    "quickstart",
    "name=run",
    "data={name: synthetic, limit: 640, val_fraction: 0.01, augment: {flip: true}}",
    "optimizer={name: AdamW, lr: 1e-3}",
    "train={epochs: 4, batch_size: 32}",
    "checkpoint={every: 5st}",
    "tracking={log_every: 1, tensorboard: false}",
]


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by a cable; their names."""
    need("ip", root=True)
    names = (f"tl{os.getpid()}a", f"tl{os.getpid()}b")
    try:
        for name in names:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            _ip("-n", name, "link", "set", "cable", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def launch(
    hosts: Sequence[str],
    cwd: Path,
    *more: str,
    ranks: Sequence[int] = (0, 1),
    wait: float = 60.0,
    code: Path = REPOSITORY,
) -> list[subprocess.Popen[bytes]]:
    """`launch run` on each of the two hosts, or on some of them, one rank each; they wait so long for each other."""
    environment = os.environ | {"PYTHONPATH": str(code), "TRAINLAUNCH_NODE_SECONDS": str(wait)}
    started = []
    for rank in ranks:
        host = hosts[rank]
        words = [sys.executable, "-m", "launch", "run", *TRAINING, *more, "--nodes", "2", "--node-rank", str(rank)]
        words += ["--head", f"{ADDRESSES[0]}:29555", "--processes", "1"]
        with (cwd / f"host-{rank}.txt").open("w") as output:
            started.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", host, *words], cwd=cwd, env=environment, stdout=output, stderr=output
                )
            )
    return started


def wait_for_step(run: RunDirectory, step: int, started: Sequence[subprocess.Popen[bytes]]) -> None:
    def reached() -> bool:
        assert all(process.poll() is None for process in started)
        return any(row["step"] >= step for row in read_lines(run.metrics_file))

    wait_until(reached)


@only_in_soak  # what follows ends with the same comparison
def test_two_hosts_train_what_two_processes_train(tmp_path: Path, hosts: tuple[str, str]) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    assert ranks.train(TRAINING, world_size=2, cwd=alone) == [0, 0], ranks.console(alone)
    started = launch(hosts, together)
    assert [process.wait(HANG) for process in started] == [0, 0], (together / "host-0.txt").read_text()
    digests = {RunDirectory(cwd / "runs/run").summary()["weights_sha256"] for cwd in (alone, together)}
    assert len(digests) == 1
    assert (together / "runs/run/logs/rank-1.log").exists()


def test_a_host_that_goes_away_ends_the_other_and_loses_nothing(tmp_path: Path, hosts: tuple[str, str]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    longer = ["train.hang_seconds=12", "train.epochs=6"]  # of 20 steps each
    assert ranks.train([*TRAINING, *longer], world_size=2, cwd=whole) == [0, 0]
    run = RunDirectory(broken / "runs/run")

    started = launch(hosts, broken, *longer)  # the cable is pulled
    wait_for_step(run, 7, started)
    _ip("-n", hosts[1], "link", "set", "cable", "down")
    assert all(process.wait(HANG) not in (0, 2, 75) for process in started)
    _ip("-n", hosts[1], "link", "set", "cable", "up")

    started = launch(hosts, broken, *longer)  # the power is cut
    wait_for_step(run, 40, started)
    for process in [psutil.Process(started[1].pid), *psutil.Process(started[1].pid).children(recursive=True)]:
        process.send_signal(signal.SIGKILL)
    assert started[0].wait(HANG) not in (0, 2, 75)  # gloo alone would wait for half an hour
    started[1].wait(HANG)

    started = launch(hosts, broken, *longer)
    assert [process.wait(HANG) for process in started] == [0, 0], (broken / "host-0.txt").read_text()
    assert run.summary()["weights_sha256"] == RunDirectory(whole / "runs/run").summary()["weights_sha256"]


def _nothing_trained(cwd: Path) -> bool:
    return not (cwd / "runs").exists() or not list((cwd / "runs").rglob("attempts.jsonl"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_never_comes_is_named_in_time(tmp_path: Path, hosts: tuple[str, str], rank: int) -> None:
    (alone,) = launch(hosts, tmp_path, ranks=[rank], wait=10)
    if rank == 1:  # the head has been there, and made its secret
        make_secret(tmp_path / "runs/run")
    assert alone.wait(HANG) == 1
    said = (tmp_path / f"host-{rank}.txt").read_text()
    missing = "machine 1 of 2 did not come within 10 s" if rank == 0 else f"machine 0 at {ADDRESSES[0]}:29555 did not"
    assert f"error: {missing}" in said
    assert "waiting for machine" in said
    assert "Traceback" not in said
    assert _nothing_trained(tmp_path)


def test_a_host_with_another_secret_does_not_take_part(tmp_path: Path, hosts: tuple[str, str]) -> None:
    """Of another user, say, who has found the port: the run's own machine 0 waits on, and names both."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    make_secret(theirs / "runs/run")
    secret = secret_file(theirs / "runs/run").read_text().strip()
    head, stranger = launch(hosts, ours, ranks=[0], wait=12) + launch(hosts, theirs, ranks=[1], wait=6)
    assert stranger.wait(HANG) == 2
    assert head.wait(HANG) == 1
    said, told = (theirs / "host-1.txt").read_text(), (ours / "host-0.txt").read_text()
    assert "has another secret than runs/run/.secret" in said
    assert f"{ADDRESSES[1]} came with another secret" in told
    assert "machine 1 of 2 did not come" in told
    assert secret not in said + told
    assert "Traceback" not in said + told
    assert _nothing_trained(ours)
    assert _nothing_trained(theirs)


def of_two_classes(pictures: Path) -> Path:
    tiny.make_images(pictures)
    return pictures


def with_a_picture_less(cwd: Path) -> tuple[list[str], Path]:
    pictures = of_two_classes(cwd / "pictures less")
    (pictures / "train/b/29.png").unlink()
    return [f"data={{name: image_folder, root: {pictures}}}"], REPOSITORY


def with_a_picture_edited(cwd: Path) -> tuple[list[str], Path]:
    pictures = of_two_classes(cwd / "pictures edited")
    with (pictures / "test/a/04.png").open("ab") as file:
        file.write(b"more")
    return [f"data={{name: image_folder, root: {pictures}}}"], REPOSITORY


def with_other_code(cwd: Path) -> tuple[list[str], Path]:
    code = cwd / "code"
    for package in ("launch", "trainlib", "configs"):
        shutil.copytree(REPOSITORY / package, code / package)
    with (code / "trainlib/models/weights/ema.py").open("a") as file:
        file.write("\n# a change\n")
    return [f"data={{name: image_folder, root: {cwd / 'pictures'}}}"], code


def with_other_values(cwd: Path) -> tuple[list[str], Path]:
    return [f"data={{name: image_folder, root: {cwd / 'pictures'}}}", "optimizer.lr=0.5", "seed=9"], REPOSITORY


@pytest.mark.parametrize(
    ("second", "named"),
    [
        pytest.param(with_a_picture_less, "1 file removed: train/b/29.png", marks=only_in_soak),
        (with_a_picture_edited, "1 file with other bytes: test/a/04.png"),
        (with_other_code, "the code of trainlaunch is "),
        (with_other_values, "optimizer.lr is 0.5, and 0.001 on rank 0"),
    ],
)
def test_hosts_that_differ_train_nothing(
    tmp_path: Path, hosts: tuple[str, str], second: Callable[[Path], tuple[list[str], Path]], named: str
) -> None:
    pictures = of_two_classes(tmp_path / "pictures")
    words, code = second(tmp_path)
    (head,) = launch(hosts, tmp_path, f"data={{name: image_folder, root: {pictures}}}", ranks=[0])
    (other,) = launch(hosts, tmp_path, *words, ranks=[1], code=code)
    assert [head.wait(HANG), other.wait(HANG)] == [2, 2], (tmp_path / "host-0.txt").read_text()
    said = (tmp_path / "host-0.txt").read_text()
    assert "the ranks do not train the same; nothing was trained:\n  rank 1 on " in said
    assert named in said
    assert "Traceback" not in said
    assert _nothing_trained(tmp_path)


def test_a_host_that_shares_no_disk_is_told_so(tmp_path: Path, hosts: tuple[str, str]) -> None:
    (stranger,) = launch(hosts, tmp_path, ranks=[1], wait=2)
    assert stranger.wait(HANG) == 2
    assert "start the run in a folder that all machines share" in (tmp_path / "host-1.txt").read_text()
    assert _nothing_trained(tmp_path)


def test_a_stop_while_others_are_waited_for_ends_at_once(tmp_path: Path, hosts: tuple[str, str]) -> None:
    (alone,) = launch(hosts, tmp_path, ranks=[0], wait=600)
    wait_until(lambda: "waiting for machine 1" in (tmp_path / "host-0.txt").read_text())
    alone.send_signal(signal.SIGTERM)
    assert alone.wait(HANG) == 75
    assert _nothing_trained(tmp_path)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("node0", ("node0", 29500)),
        ("node0:1234", ("node0", 1234)),
        ("10.0.0.1:29501", ("10.0.0.1", 29501)),
        ("[::1]:29501", ("::1", 29501)),
        ("[::1]", ("::1", 29500)),
    ],
)
def test_heads(text: str, parsed: tuple[str, int]) -> None:
    assert parse_head(text) == parsed


@pytest.mark.parametrize("text", ["", ":1234", "node0:", "node0:x", "node0:0", "node0:65536", "::1", "2001:db8::5"])
def test_heads_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="--head: got"):
        parse_head(text)


@pytest.mark.parametrize(
    ("interfaces", "expected"),
    [({"lo": ["127.0.0.1"], "eth0": ["192.0.2.7"]}, "lo"), ({"eth0": ["192.0.2.7"]}, None)],
)
def test_the_interface_that_leads_to_the_head(interfaces: Mapping[str, Sequence[str]], expected: str | None) -> None:
    assert interface_to("127.0.0.1", interfaces) == expected
    with pytest.raises(UserError, match="cannot be reached"):
        interface_to("no-such-host.invalid", interfaces)
