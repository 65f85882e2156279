"""Whatever is wrong with W&B, training is unharmed: same bits, exit code 0, one warning, no waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

import psutil
import pytest
import ranks
import tiny
import wandb_files
import wandb_server
from needs import need
from patience import HANG

from trainlib.runs.files.json_records import read_lines

pytestmark = pytest.mark.slow

LIMIT = 75.0  # seconds that W&B may cost on a loaded machine; it alone would wait for 90 s, and longer at the end
ONLINE = "tracking.wandb.mode=online"
KEY = {"WANDB_API_KEY": 40 * "0"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wandb") / "images"
    tiny.make_images(root)
    return root


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A run without W&B."""
    cwd = tmp_path_factory.mktemp("undisturbed")
    assert ranks.train(arguments(images, "tracking.wandb.mode=disabled"), cwd=cwd) == [0]
    return cwd


def arguments(images: Path, *more: str) -> list[str]:
    return tiny.arguments(images, 3, 4, *more)


def tracked(environment: Mapping[str, str], modules: Mapping[str, None], arguments: list[str]) -> int:
    """The training program with W&B, in this environment, and without these modules."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        del os.environ[name]
    os.environ |= {"HOME": os.getcwd(), **environment}  # no key in the home directory
    sys.modules |= modules  # type: ignore[arg-type]  # None is how Python marks a module that cannot be imported
    return ranks.main(arguments)


def train_disturbed(
    cwd: Path,
    arguments: list[str],
    environment: Mapping[str, str] = {},
    modules: Mapping[str, None] = {},
    disturb: Callable[[Path], None] = lambda cwd: None,
) -> float:
    """Train to the end; how long it took from the start of the attempt."""
    began = time.monotonic()
    under_way = ranks.start(tracked, environment, modules, arguments, world_size=1, cwd=cwd)
    disturb(cwd)
    assert under_way.wait(60) == [0], ranks.console(cwd)
    return time.monotonic() - began


def assert_unharmed(cwd: Path, undisturbed: Path, warning: str) -> None:
    tiny.assert_same_result(cwd, undisturbed)
    log = (cwd / "runs/run/logs/rank-0.log").read_text()
    warnings = [line for line in log.splitlines() if " WARNING " in line and "fewer than 10 images" not in line]
    assert len(warnings) == 1, warnings
    assert warning in warnings[0]
    assert "Traceback" not in log + ranks.console(cwd)
    deadline = time.monotonic() + HANG
    while left := [process for process in psutil.process_iter(["cwd", "name"]) if process.info["cwd"] == str(cwd)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def processes(cwd: Path) -> Iterator[psutil.Process]:
    """W&B's own processes below a run's directory, as soon as there are any."""
    deadline = time.monotonic() + HANG
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cwd", "name"]):
            if process.info["name"] == "wandb-core" and process.info["cwd"] == str(cwd):
                yield process
        time.sleep(0.01)


def test_the_package_is_absent(tmp_path: Path, images: Path, undisturbed: Path) -> None:
    train_disturbed(tmp_path, arguments(images), modules={"wandb": None})
    assert_unharmed(tmp_path, undisturbed, "not installed")


def test_the_package_is_broken(tmp_path: Path, images: Path, undisturbed: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/wandb.py").write_text("raise ImportError('libwandb.so is missing')")
    train_disturbed(tmp_path, arguments(images), {"PYTHONPATH": str(tmp_path / "broken")})
    assert_unharmed(tmp_path, undisturbed, "libwandb.so is missing")


def test_there_is_no_key(tmp_path: Path, images: Path, undisturbed: Path) -> None:
    train_disturbed(tmp_path, arguments(images, ONLINE))
    assert_unharmed(tmp_path, undisturbed, "No API key")
    wandb_files.assert_same_rows(tmp_path / "runs/run")


def test_the_address_is_dead(tmp_path: Path, images: Path, undisturbed: Path) -> None:
    dead = {"WANDB_BASE_URL": f"http://127.0.0.1:{ranks.free_port()}"}
    seconds = train_disturbed(tmp_path, arguments(images, ONLINE), KEY | dead)
    run = tmp_path / "runs/run"
    times = [tiny.attempts(tmp_path, "start")[0]["time"], read_lines(run / "metrics.jsonl")[0]["time"]]
    began, first_row = map(datetime.fromisoformat, times)
    assert (first_row - began).total_seconds() < LIMIT, "training waits for no server"
    assert_unharmed(tmp_path, undisturbed, "connection refused")
    # Of the 15 s after this short training, W&B waits 10 for the server: on a loaded machine, too few are left.
    if "not everything was written" not in (run / "logs/rank-0.log").read_text():
        wandb_files.assert_same_rows(run)
    assert seconds < LIMIT + 10


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_its_process_ends_or_hangs_in_the_middle(tmp_path: Path, images: Path, undisturbed: Path, number: int) -> None:
    train_disturbed(tmp_path, arguments(images), disturb=lambda cwd: next(processes(cwd)).send_signal(number))
    assert_unharmed(tmp_path, undisturbed, "W&B")
    if number == signal.SIGKILL:  # another process took over
        wandb_files.assert_same_rows(tmp_path / "runs/run")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few pages where W&B's files go."""
    need("mount", "umount", root=True)
    folder = tmp_path / "runs/run/wandb"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_disk_is_full(tmp_path: Path, images: Path, undisturbed: Path, full_disk: Path) -> None:
    train_disturbed(tmp_path, arguments(images))
    assert_unharmed(tmp_path, undisturbed, "No space left on device")


def test_the_server_is_lost_in_the_middle(tmp_path: Path, images: Path, undisturbed: Path) -> None:
    with wandb_server.serving() as server:
        environment = server.environment

        def lose(cwd: Path) -> None:
            deadline = time.monotonic() + HANG
            while not server.runs and time.monotonic() < deadline:
                time.sleep(0.01)
            server.shutdown()
            server.server_close()

        seconds = train_disturbed(tmp_path, arguments(images, ONLINE), environment, disturb=lose)
    assert server.runs
    assert seconds < LIMIT + 15
    assert_unharmed(tmp_path, undisturbed, "W&B")
