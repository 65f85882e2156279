"""Fixtures: a working directory of its own for each test, and ranks that start without importing torch again."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ranks
from needs import need
from slurm_cluster import PROGRAMS, Cluster
from soak import SOAK
from trained import TRAINING

# A shell that starts the tests in the background ignores these, and every process of a test would inherit that.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TRAINLAUNCH_NUM_THREADS"] = "1"  # the same bits at every world size that the tests compare
os.environ["WANDB_MODE"] = "disabled"  # the tests of W&B take it out again


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take minutes belong to `make soak` (SOAK=1) and not to `make test`."""
    if not SOAK:
        long = [item for item in items if item.get_closest_marker("soak")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images go where they are removed again."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["TRAINLAUNCH_CACHE"] = str(cache)
    yield
    shutil.rmtree(cache, ignore_errors=True)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, for runs/ to be made in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working directory with the finished run of tests/support/trained.py, not to be changed."""
    cwd = tmp_path_factory.mktemp("trained")
    assert ranks.train(TRAINING, world_size=2, cwd=cwd) == [0, 0]
    return cwd


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real SLURM of two nodes on this machine, the same one for all tests of this process."""
    need(*PROGRAMS, root=True)
    started = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        started.start()
        yield started
    finally:
        started.stop()
