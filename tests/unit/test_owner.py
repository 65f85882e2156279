"""Who owns a run: one process, told from a reader that locks, also where locks do not hold or the run is moved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from locks import holding_lock, owning
from needs import need
from parts import resolved
from paths import REPOSITORY

from launch.runs.show import run_details
from trainlib.errors import RunDirectoryError
from trainlib.runs.attempt import owner
from trainlib.runs.attempt.owner import OWNER_FILE, Ownership, is_taken, read_owner
from trainlib.runs.attempt.record import Attempt
from trainlib.runs.attempt.status import is_running, read_run
from trainlib.runs.directory import RunDirectory
from trainlib.runs.files.json_records import read_json

CONFIG = resolved({"name": "run"})


def begun(runs: Path) -> RunDirectory:
    """A run that has begun and is over."""
    run = RunDirectory.open(CONFIG, runs=runs)
    run.begin(CONFIG)
    run.close()
    return run


def owned_elsewhere(directory: Path, *, renewed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the file of an owner on another machine, who renews it while this one watches, or does not."""
    monkeypatch.setattr(owner, "DEAD_SECONDS", 0.6)
    mine = Ownership(directory)
    content = read_json(directory / OWNER_FILE) | {"machine": "elsewhere", "host": "node7"}
    mine.release()
    (directory / OWNER_FILE).write_text(json.dumps(content))
    sleep = time.sleep

    def sleep_and_renew(seconds: float) -> None:
        sleep(seconds)
        os.utime(directory / OWNER_FILE)

    if renewed:
        monkeypatch.setattr("time.sleep", sleep_and_renew)


@pytest.mark.parametrize("kind", ["LOCK_SH", pytest.param("LOCK_EX", marks=pytest.mark.slow)])
def test_a_reader_that_holds_the_lock_does_not_refuse_a_start(tmp_path: Path, kind: str) -> None:
    run = begun(tmp_path)
    with holding_lock(run.path, kind):
        for _ in range(2):
            opened = RunDirectory.open(CONFIG, runs=tmp_path)
            with pytest.raises(RunDirectoryError, match=f"in use: process {os.getpid()} on"):
                RunDirectory.open(CONFIG, runs=tmp_path)
            opened.begin(CONFIG)
            opened.close()


def test_a_lock_beside_an_open_attempt_of_a_version_without_owners_counts(tmp_path: Path) -> None:
    run = begun(tmp_path)
    Attempt(run.path, 1, 0).begin(run.next_attempt())
    with holding_lock(run.path, "LOCK_EX"):
        assert is_running(run.path)
        with pytest.raises(RunDirectoryError, match="in use: another process"):
            RunDirectory.open(CONFIG, runs=tmp_path)
    assert not is_running(run.path)


def test_the_owner_counts_without_its_lock(tmp_path: Path) -> None:
    """As on a file system that does not pass locks on: another start gets the lock, and is refused all the same."""
    run = begun(tmp_path)
    with owning(run.path) as process:
        (run.path / "lock").unlink()
        assert is_running(run.path)
        with pytest.raises(RunDirectoryError, match=f"in use: process {process.pid} on"):
            RunDirectory.open(CONFIG, runs=tmp_path)
        process.kill()
        process.wait()
        assert not is_running(run.path)
        left = (run.path / OWNER_FILE).read_bytes(), (run.path / OWNER_FILE).stat().st_mtime_ns
        RunDirectory.open(CONFIG, runs=tmp_path).close()  # nothing began
    assert left == ((run.path / OWNER_FILE).read_bytes(), (run.path / OWNER_FILE).stat().st_mtime_ns)
    taken = RunDirectory.open(CONFIG, runs=tmp_path)
    taken.begin(CONFIG)
    taken.close()
    assert not (run.path / OWNER_FILE).exists()


def test_a_process_that_got_the_number_of_a_dead_owner_does_not_count(tmp_path: Path) -> None:
    run = begun(tmp_path)
    mine = Ownership(run.path)
    content = read_json(run.path / OWNER_FILE)
    assert is_taken(run.path)
    mine.release()
    (run.path / OWNER_FILE).write_text(json.dumps(content | {"started": "1"}))
    assert not is_taken(run.path)


@pytest.mark.parametrize("renewed", [True, False])
def test_an_owner_on_another_machine_lives_while_it_renews(
    tmp_path: Path, renewed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path)
    owned_elsewhere(run.path, renewed=renewed, monkeypatch=monkeypatch)
    if renewed:
        with pytest.raises(RunDirectoryError, match=r"in use: process \d+ on node7"):
            RunDirectory.open(CONFIG, runs=tmp_path)
    else:
        RunDirectory.open(CONFIG, runs=tmp_path).close()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"id": 1', '{"pid": "x"}', "\0" * 100])
def test_a_damaged_owner_file_is_in_nobodys_way(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "DEAD_SECONDS", 0.3)
    run = begun(tmp_path)
    (run.path / OWNER_FILE).write_text(content)
    assert not is_running(run.path)
    RunDirectory.open(CONFIG, runs=tmp_path).close()


def test_the_owner_renews_and_notices_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "RENEW_SECONDS", 0.05)
    mine = Ownership(tmp_path)
    before = (tmp_path / OWNER_FILE).stat().st_mtime_ns
    deadline = time.monotonic() + 30
    while (tmp_path / OWNER_FILE).stat().st_mtime_ns == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (tmp_path / OWNER_FILE).stat().st_mtime_ns > before
    assert (mine.holds(), mine.is_lost) == (True, False)
    (tmp_path / OWNER_FILE).unlink()
    other = Ownership(tmp_path)
    while not mine.is_lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (mine.holds(), mine.is_lost) == (False, True)
    mine.release()
    assert read_owner(tmp_path) == other.owner  # not removed by the one that lost it
    other.release()


def test_of_two_that_take_over_a_dead_owners_run_at_once_one_begins(tmp_path: Path) -> None:
    """The second has seen the dead owner's file and removes the first one's instead: the first does not begin."""
    first = RunDirectory.open(CONFIG, runs=tmp_path)
    (first.path / OWNER_FILE).unlink()
    (first.path / "lock").unlink()
    second = RunDirectory.open(CONFIG, runs=tmp_path)
    with pytest.raises(RunDirectoryError, match="not this run's directory any more"):
        first.begin(CONFIG)
    second.begin(CONFIG)
    first.close()
    assert read_owner(second.path) == second.owner
    second.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_that_was_moved_writes_no_more(tmp_path: Path, replaced: bool) -> None:
    run = RunDirectory.open(CONFIG, runs=tmp_path)
    run.begin(CONFIG)
    run.path.rename(tmp_path / "elsewhere")
    other = RunDirectory.open(CONFIG, runs=tmp_path) if replaced else None
    with pytest.raises(RunDirectoryError, match="moved or removed"):
        run.write_summary({"status": "completed"})
    run.close()
    assert not (tmp_path / "run/summary.json").exists()
    if other is not None:
        assert read_owner(other.path) == other.owner
        other.close()


def test_fresh_keeps_its_identity_and_what_it_was_asked(tmp_path: Path) -> None:
    begun(tmp_path)
    run = RunDirectory.open(CONFIG, fresh=True, runs=tmp_path)
    mine = run.owner
    (run.path / "STOP").write_text("launch stop\n")
    run.begin(CONFIG)
    assert run.owner == mine == read_owner(run.path)
    assert (run.path / "STOP").read_text() == "launch stop\n"
    assert not (tmp_path / "run.old-1" / OWNER_FILE).exists()
    assert not (tmp_path / "run.old-1" / "STOP").exists()
    with pytest.raises(RunDirectoryError, match="in use"):
        RunDirectory.open(CONFIG, runs=tmp_path)
    run.close()


def test_the_entries_of_the_run_and_of_its_folders_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def recording(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recording)
    for fresh in (False, True):
        flushed.clear()
        run = RunDirectory.open(CONFIG, fresh=fresh, runs=tmp_path / "runs")
        run.begin(CONFIG)
        run.close()
        assert {str(path) for path in (tmp_path, tmp_path / "runs", tmp_path / "runs/run")} <= set(flushed)


def without_locks(folder: Path) -> dict[str, str]:
    """Variables under which a process finds that flock always succeeds."""
    need("gcc")
    library = folder / "flock_succeeds.so"
    source = REPOSITORY / "tests/support/flock_succeeds.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return {"LD_PRELOAD": str(library)}


@pytest.mark.slow
def test_where_locks_do_not_hold_a_start_in_another_container_is_refused(tmp_path: Path) -> None:
    """Two containers cannot see each other's processes, as two machines cannot: they see the owner's file change."""
    need("unshare", root=True)
    program = (
        "import sys, time; from pathlib import Path; from trainlib.config import load_config;"
        "from trainlib.errors import RunDirectoryError; from trainlib.runs.directory import RunDirectory;"
        "config = load_config(['quickstart', 'name=run'])\n"
        "try: run = RunDirectory.open(config, runs=Path(sys.argv[1])); run.begin(config)\n"
        "except RunDirectoryError as error: print(error, flush=True)\n"
        "else: print('begun', flush=True); sys.stdin.readline()\n"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", program]
    environment = os.environ | without_locks(tmp_path)

    def start() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen([*command, str(tmp_path / "runs")], env=environment, stdin=pipe, stdout=pipe, text=True)

    first = start()
    assert first.stdout is not None
    assert first.stdout.readline() == "begun\n"
    second = start()
    assert "in use: process" in second.communicate()[0]
    first.kill()
    first.communicate()
    third = start()
    assert third.stdout is not None
    assert third.stdout.readline() == "begun\n"
    third.communicate("\n")


@pytest.mark.slow
@pytest.mark.parametrize("locks_hold", [True, False])
def test_many_starts_at_once_have_one_owner(tmp_path: Path, locks_hold: bool) -> None:
    program = (
        "import sys, time; from pathlib import Path; from trainlib.config import load_config;"
        "from trainlib.errors import RunDirectoryError; from trainlib.runs.directory import RunDirectory;"
        "config = load_config(['quickstart', 'name=run']); print('ready', flush=True); sys.stdin.readline()\n"
        "try: run = RunDirectory.open(config, runs=Path(sys.argv[1])); run.begin(config)\n"
        "except RunDirectoryError: print('refused', flush=True)\n"
        "else: print('begun', flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "runs")]
    environment = os.environ | ({} if locks_hold else without_locks(tmp_path))
    pipe = subprocess.PIPE
    starts = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment) for _ in range(6)
    ]
    said: list[str] = []
    for process in starts:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in starts:
        assert process.stdin is not None
        process.stdin.write("\n")
    for process in starts:
        assert process.stdout is not None
        said.append(process.stdout.readline())
    for process in starts:
        process.communicate("\n")
    assert sorted(said) == ["begun\n", *["refused\n"] * 5]


def test_a_run_that_is_pruned_does_not_run(tmp_path: Path) -> None:
    """Nor can it be started meanwhile; who looks at it is told."""
    run = begun(tmp_path)
    status = read_run(run.path).status
    with RunDirectory.held(run.path, "launch prune"):
        assert not is_running(run.path)
        found = read_run(run.path)
        assert found.status == status
        assert f"in use:      launch prune, process {os.getpid()} on" in run_details(found, datetime.now(UTC))
        with pytest.raises(RunDirectoryError, match=r"in use: process \d+ on .* is at `launch prune`; "):
            RunDirectory.open(CONFIG, runs=tmp_path)
    assert "in use" not in run_details(read_run(run.path), datetime.now(UTC))
