"""Every command that reads a run directory, on mutated ones: no traceback, no hang, nothing written or read outside."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import hostile_runs
import pytest
import ranks
import tiny
from soak import rounds

pytestmark = pytest.mark.slow

CPU_SECONDS, SECONDS = 5.0, 60.0  # for one command: of a processor; and in all, on a machine that does other things
COMMANDS = [
    "list",
    "status evil",
    "logs evil",
    "logs evil --attempt 1",
    "report evil",
    "report evil good --output page.html",
    "eval evil",
    "eval evil --split val --json",
    "predict evil picture.png --top 2",
    "export evil --format safetensors --output model.safetensors --force",
    "wandb-sync evil",
    "stop evil",
    "verify",
    "run",
]
EXIT_CODES = {0, 1, 2, 75}


class TooSlowError(BaseException):
    """A command that does not come back: no handler of the code under test may catch this."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile") / "images"
    tiny.make_images(root)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A finished run of two epochs, with W&B's files, histograms, a job and a failure."""
    cwd = tmp_path_factory.mktemp("trained")
    training = tiny.arguments(images, 2, 4, "tracking.health={every: 4st}")
    assert ranks.run(tracked, training, world_size=1, cwd=cwd) == [0], ranks.console(cwd)
    run = cwd / "runs/run"
    job = {"event": "begin", "time": "2030-01-01T00:00:00+00:00", "job_id": "7", "restart": 0, "nodes": ["n0"]}
    ends = {"event": "end", "cause": "failure", "rank": 1, "exit_code": 1, "error": "x", "requeued": False}
    (run / "jobs.jsonl").write_text(f"{json.dumps(job)}\n{json.dumps(job | ends)}\n")
    failure = {"time": job["time"], "rank": 1, "host": "n0", "exit_code": 1, "signal": None, "log": "x", "error": "y"}
    (run / "logs/node-0.failure.json").write_text(json.dumps(failure))
    return cwd


def tracked(arguments: list[str]) -> int:
    """The training program with W&B, in a rank."""
    os.environ.pop("WANDB_MODE", None)
    return ranks.main(arguments)


@pytest.mark.parametrize("group", range(rounds(1, 100)))
def test_mutated_run_directories(tmp_path: Path, trained: Path, images: Path, group: int) -> None:
    """Up to five directories; the seed of each is its number, so that one alone can be tried again."""
    for seed in range(5 * group, 5 * group + rounds(2, 5)):
        cwd = tmp_path / f"{seed}"
        outside = cwd / "outside"
        shutil.copytree(trained / "runs/run", cwd / "runs/good")
        shutil.copytree(trained / "runs/run", cwd / "runs/evil")
        shutil.copy(next(images.rglob("*.png")), cwd / "picture.png")
        outside.mkdir()
        (outside / "secret").write_text(hostile_runs.SECRET)
        mutations = hostile_runs.Mutator(cwd / "runs/evil", outside, seed).mutate()
        codes = ranks.run(read_all, tiny.arguments(images, 2, 4), str(cwd), world_size=1, cwd=cwd)
        found = ranks.console(cwd)
        assert codes == [0], f"seed {seed}, {mutations}: {found}"
        shutil.rmtree(cwd)


def read_all(training: list[str], folder: str) -> int:
    """In a rank: run every command, and print what is wrong with how it went; return 1 if anything is."""
    cwd = Path(folder)
    os.environ |= {"WANDB_API_KEY": 40 * "0", "WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": folder}
    signal.signal(signal.SIGALRM, _too_slow)
    signal.signal(signal.SIGPROF, _too_slow)
    wrong = [f"{command}: {problem}" for command in COMMANDS for problem in _problems(command, training, cwd)]
    print("\n".join(wrong))
    return 1 if wrong else 0


def _too_slow(number: int, frame: object) -> None:
    raise TooSlowError(signal.Signals(number).name)


def _problems(command: str, training: list[str], cwd: Path) -> list[str]:
    """Run one command in this process and return what is wrong: how it ended, what it said and what it touched."""
    before = hostile_runs.contents(cwd / "outside"), hostile_runs.contents(cwd / "runs/good")
    output = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True)
    failed, code, began = "", 0, time.monotonic()
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = _run(command, training, cwd)
    except BaseException:  # noqa: BLE001 - the boundary of the test
        failed = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    said = output.buffer.getvalue().decode(errors="replace")
    after = hostile_runs.contents(cwd / "outside"), hostile_runs.contents(cwd / "runs/good")
    problems = {
        f"raised after {time.monotonic() - began:.1f} s: {failed[-1500:]}": bool(failed),
        f"exit code {code}": code not in EXIT_CODES,
        f"a traceback: {said[-1500:]}": "Traceback" in said,
        "it read outside": hostile_runs.SECRET in said,
        "it changed something outside": before != after,
        f"it steers the terminal: {said!r:.500}": not said.isprintable() and _steers(said),
        f"the good run is hidden: {said[-500:]}": command == "list" and "good" not in said,
    }
    return [problem for problem, there in problems.items() if there]


def _run(command: str, training: list[str], cwd: Path) -> int:
    from launch.cli import main
    from trainlib.training.programs import verify

    if command == "verify":
        (cwd / "verified").mkdir(exist_ok=True)
        return verify.main([str(cwd / "runs/evil"), str(cwd / "verified"), "--steps", "1"])
    if command == "run":
        return main(["run", *training, "name=evil", "train.epochs=3", "--resume", "--processes", "1"])
    return main(command.split())


def _steers(said: str) -> bool:
    """Return True if a text has control characters, or changes the direction of writing."""
    return any((ord(c) < 32 and c not in "\n\r\t") or 127 <= ord(c) < 160 or c in "\u202e\u2066" for c in said)


def test_the_checks_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that writes outside, prints what it found there, or raises, is noticed."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs/good").mkdir(parents=True)
    (tmp_path / "outside/secret").write_text(hostile_runs.SECRET)
    monkeypatch.setattr(signal, "setitimer", lambda *_: None)

    def misbehave(command: str, training: list[str], cwd: Path) -> int:
        print((cwd / "outside/secret").read_text(), "\x1b[2J")
        (cwd / "outside/executed").touch()
        raise ValueError("unexpected")

    monkeypatch.setattr(sys.modules[__name__], "_run", misbehave)
    assert len(_problems("status evil", [], tmp_path)) == 4
