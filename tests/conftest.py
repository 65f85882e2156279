"""Fixtures: a working directory of its own for each test, and ranks that start without importing torch again."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import build_stand_in
import hypothesis
import pytest
import ranks
from gpu_ranks import Gpus
from needs import missing_here, need
from rank_server import rank_server
from slurm_cluster import PROGRAMS, Cluster
from soak import SOAK, rounds

# A shell that starts the tests in the background ignores these, and every process of a test would inherit that.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TRAINLAUNCH_NUM_THREADS"] = "1"  # the same bits at every world size that the tests compare
os.environ["TRAINLAUNCH_TRUSTED_CODE"] = "trusted-code"  # of each test's own folder, not of who runs the tests
os.environ["WANDB_MODE"] = "disabled"  # the tests of W&B take it out again


# The same examples at every run; more of them under `make soak`. A loaded machine is slow: no deadline.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, max_examples=rounds(25, 2000))
hypothesis.settings.load_profile("tests")

LEFT_OUT = pytest.StashKey[dict[str, int]]()  # number of tests by marker


def pytest_configure(config: pytest.Config) -> None:
    """Make the process that ranks are forked from; the drawings are made once. Not where tests are only handed out."""
    if config.getoption("dist", "no") == "no" and not config.option.collectonly:
        rank_server()
        import made_once  # noqa: F401

        gc.disable()  # what is collected stays, and is a million objects


def pytest_collection_finish() -> None:
    """Let the garbage collector look for what tests leave behind, not through modules and tests."""
    gc.freeze()
    gc.enable()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark all that needs the SLURM cluster as slow."""
    if "cluster" in getattr(item, "fixturenames", ()):
        assert "slurm" in item.nodeid, "the tests of the cluster run in one process, which their file's name tells"
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep each file's tests in one process, where fixtures of modules are made once, and all tests of SLURM in one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "slurm" if "slurm" in file else file

    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only `make soak` runs (SOAK=1); put SLURM's tests first, as the longest row of one process."""
    items.sort(key=lambda item: "slurm" not in item.nodeid.partition("::")[0])
    if not SOAK:
        long = [item for item in items if item.get_closest_marker("soak")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what is left out, for the end of the output."""
    for item in items:
        counts = item.config.stash.setdefault(LEFT_OUT, {})
        for name in ("soak", "slow"):
            if item.get_closest_marker(name):
                counts[name] = counts.get(name, 0) + 1
                break


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under pytest-xdist, a worker tells the main process what it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """All workers leave out the same tests."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out, and which command runs it."""
    commands = {"slow": "make test-slow", "soak": "make soak"}
    for name, count in sorted(config.stash.get(LEFT_OUT, {}).items()):
        terminalreporter.write_line(f"left out: {count} tests that are {name}; `{commands[name]}` runs them")


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
    from trained import TRAINING  # here: it imports torch, which the process that only hands out tests does without

    if "PYTEST_XDIST_WORKER" not in os.environ:
        cwd = tmp_path_factory.mktemp("trained")
        assert ranks.train(TRAINING, world_size=2, cwd=cwd) == [0, 0]
        return cwd
    cwd = tmp_path_factory.getbasetemp().parent / "trained"  # the same one for all workers
    with (cwd.parent / "trained.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (cwd.parent / "trained.done").exists():
            cwd.mkdir()
            assert ranks.train(TRAINING, world_size=2, cwd=cwd) == [0, 0]
            (cwd.parent / "trained.done").touch()
    return cwd


@pytest.fixture(scope="session")
def gpus() -> Iterator[Gpus]:
    """Emulated GPUs (tests/fakegpu); skipped where torch is no CUDA build or g++ is missing, but never on CI."""
    need("g++", "nm")
    site = build_stand_in.installed_torch()
    if site is None:
        missing_here("needs a CUDA build of torch, as PyPI has it for Linux")
    started = Gpus(build_stand_in.build(site))
    yield started
    started.close()


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
