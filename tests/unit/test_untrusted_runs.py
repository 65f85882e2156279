"""Run directories that somebody else made: what is no regular file, or no record of ours, is told and harms nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import report_runs
from needs import need

from launch.cli import main
from trainlib.errors import ConfigError
from trainlib.platform.regular_files import open_regular, read_regular
from trainlib.runs.attempt.status import read_run
from trainlib.runs.files.durable import write_atomically
from trainlib.runs.files.json_records import MAX_DEPTH, parse_record
from trainlib.runs.records.confusion import counts_in, entry
from trainlib.runs.records.rows import MetricsFile, lost_rows
from trainlib.runs.terminal.printable import printable

FILES = ["lock", "attempts.jsonl", "metrics.jsonl", "summary.json", "jobs.jsonl", "config.yaml"]


def make_link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def make_device(path: Path) -> None:
    need(root=True)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


KINDS: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a link": make_link,
    "a socket": make_socket,
    "a device": make_device,
    "a folder": Path.mkdir,
}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two runs, `good` and `evil`, that are the same so far."""
    monkeypatch.chdir(tmp_path)
    for name in ("good", "evil"):
        (tmp_path / "runs").mkdir(exist_ok=True)
        report_runs.resumed_run(tmp_path / "runs" / name)
    return tmp_path / "runs"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_is_told_and_hides_no_other_run(
    runs: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    path = runs / "evil" / name
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "good" in listed
    assert ("evil" in listed) or name == "attempts.jsonl"
    for command in (["status", "evil"], ["report", "evil"], ["report", "evil", "good", "--output", "page.html"]):
        assert main(command) == 0, command
    capsys.readouterr()
    assert main(["status", "evil"]) == 0
    shown = capsys.readouterr().out
    assert (f"{name}: is {kind}" in shown) == (name not in ("lock", "config.yaml"))


@pytest.mark.parametrize("kind", KINDS)
def test_only_regular_files_inside_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    KINDS[kind](tmp_path / "file")
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_APPEND):
        with pytest.raises(OSError, match=f"is {kind}, must be a regular file"):
            open_regular(tmp_path / "file", flags)
    assert not (tmp_path / "elsewhere").exists()


def test_no_folder_on_the_way_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("secret")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/logs").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="logs"):
        read_regular(tmp_path / "run/logs/file", 100, within=tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    assert read_regular(tmp_path / "link/file", 100, within=tmp_path / "link") == b"secret"  # the run itself may be one
    with pytest.raises(OSError, match="more than the 3 bytes"):
        read_regular(tmp_path / "outside/file", 3)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[]", "no JSON object"),
        ("{", "no whole JSON"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": {"b": 1, "b": 1}}', "twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e999}', "too large"),
        (f'{{"a": {"9" * 30}}}', "digits"),
        (f'{{"a": {"9" * 10_000}}}', "digits"),
        (f'{{"a": {"[" * (MAX_DEPTH + 1)}{"]" * (MAX_DEPTH + 1)}}}', "deeply"),
        (f'{{"a": {"[" * 100_000}{"]" * 100_000}}}', "deeply"),
    ],
)
def test_odd_json_is_refused_in_words(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse_record(text.encode())


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("metrics.jsonl", {"step": "7", "split": "train"}),
        ("metrics.jsonl", {"step": True, "split": "train"}),
        ("metrics.jsonl", {"step": 3, "split": ["train"]}),
        ("metrics.jsonl", {"step": 3, "split": "train", "scope": {}}),
        ("metrics.jsonl", {"step": 3, "split": "val", "loss": "0.5"}),
        ("attempts.jsonl", {"event": "start", "attempt": [1]}),
        ("attempts.jsonl", {"event": "end", "status": "\x1b[2J"}),
        ("jobs.jsonl", {"event": "begin", "job_id": "--uid=root"}),
        ("jobs.jsonl", {"event": "end", "job_id": "7", "excluded": 5}),
    ],
)
def test_records_of_other_types_are_told_and_left_out(
    runs: Path, capsys: pytest.CaptureFixture[str], name: str, line: object
) -> None:
    before = read_run(runs / "evil")
    with (runs / "evil" / name).open("a") as file:
        file.write(json.dumps(line) + "\n")
    run = read_run(runs / "evil")
    (problem,) = run.problems
    assert problem.startswith(f"{name}: 1 line is damaged")
    assert (run.attempts, run.jobs, run.last) == (before.attempts, before.jobs, before.last)
    assert main(["status", "evil"]) == main(["report", "evil"]) == 0
    assert problem in capsys.readouterr().out
    assert f"{name}: 1 line is damaged" in (runs / "evil/report.html").read_text()


def test_rows_that_are_lost_are_told() -> None:
    def row(epoch: int, step: int, split: str, scope: str | None) -> dict[str, object]:
        return {"epoch": epoch, "step": step, "split": split} | ({"scope": scope} if scope else {})

    rows = [row(-(-step // 10), step, "train", "step") for step in range(1, 31)]
    rows += [row(epoch, 10 * epoch, *kind) for epoch in (1, 2, 3) for kind in (("train", "epoch"), ("val", None))]
    assert lost_rows(rows) is None
    assert lost_rows([each for each in rows if each["step"] != 15]) == "rows of steps are lost between step 14 and 16"
    for index in (30, 31, 32, 33):  # the last epoch's may be missing, as it may not be over
        assert "rows of 1 epochs are lost" in str(lost_rows([*rows[:index], *rows[index + 1 :]]))
    every_fifty = [row(1, step, "train", "step") for step in (*range(10, 60, 10), *range(100, 500, 50))]
    assert lost_rows(every_fifty) is None  # `tracking.log_every` was changed on resuming


LOST: dict[str, Callable[[int], bool]] = {
    "the first": lambda number: number == 0,
    "the beginning": lambda number: number < 4,
    "every second": lambda number: number % 2 == 1,
    "one in the middle": lambda number: number == 7,
    "all": lambda number: True,
}


@pytest.mark.parametrize("lost", LOST)
def test_a_checkpoint_tells_how_many_rows_led_to_it(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    steps = [{"step": step, "split": "train", "scope": "step", "epoch": 1} for step in range(1, 13)]
    rows = [*steps, {"step": 10, "split": "test", "epoch": 1}]
    manifest = {"format": 1, "step": 10, "num_rows": 10, "sha256": "of no interest"}
    path, folder = runs / "evil/metrics.jsonl", runs / "evil/checkpoints/step-00000010"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not any("rows" in problem for problem in read_run(runs / "evil").problems)
    MetricsFile(path, 10, 10).close()
    assert not caplog.records
    path.write_text("".join(json.dumps(row) + "\n" for number, row in enumerate(steps) if not LOST[lost](number)))
    assert any("rows" in problem for problem in read_run(runs / "evil").problems)
    MetricsFile(path, 10, 10).close()
    (record,) = caplog.records
    assert "rows" in record.message
    (folder / "manifest.json").write_text(json.dumps(manifest | {"num_rows": None}))
    assert not any("written up to" in problem for problem in read_run(runs / "evil").problems)


def test_rows_that_a_resume_leaves_out_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "split": "train", "scope": "step", "epoch": 1}) for step in (1, 2, 3)]
    path.write_text("\n".join([lines[0], "no row", lines[1], lines[2][:20]]))
    MetricsFile(path, 3).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    (record,) = caplog.records
    assert "damaged: line 2" in record.message
    caplog.clear()
    path.write_text("\n".join(lines)[:-5])  # as a kill leaves it
    MetricsFile(path, 3).close()
    assert not caplog.records


def test_temporary_names_cannot_be_guessed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "page.html").symlink_to(victim)
    for name in (".page.html.tmp", f".page.html.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(victim)
    write_atomically(tmp_path / "page.html", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "page.html").read_text() == "new"
    assert not (tmp_path / "page.html").is_symlink()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, käse, 日本", "plain text, käse, 日本"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\u202eb\u2066", r"a\u202eb\u2066"),
        ("caf\udce9", r"caf\xe9"),
        ("half \ud800", r"half \ud800"),
        ("two\nlines\x9b", r"two\nlines\x9b"),
        ("zero\u200bwidth", r"zero\u200bwidth"),
    ],
)
def test_what_does_not_show_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    assert printable("\n\x1b", keep="\n") == "\n\\x1b"


def test_logs_do_not_steer_the_terminal(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "evil/logs").mkdir(exist_ok=True)
    (runs / "evil/logs/rank-0.log").write_text("=== attempt 1 ===\n\x1b[2J\x9b5n\ttext\n")
    assert main(["logs", "evil"]) == main(["logs", "evil", "--attempt", "1"]) == 0
    assert capsys.readouterr().out == 2 * "=== attempt 1 ===\n\\x1b[2J\\x9b5n\ttext\n"


def test_aliases_do_not_expand_without_end(runs: Path) -> None:
    laughs = "".join(f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(10))}}}\n" for i in range(1, 10))
    (runs / "evil/config.yaml").write_text(f"a0: &a0 {{x: 1}}\n{laughs}train: *a9\n")
    assert main(["report", "evil", "good", "--output", "page.html"]) == 0
    assert "config.yaml: more than" in Path("page.html").read_text()


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e300", "0.5", "[.nan]", "{a: .inf}"])
def test_any_number_in_a_configuration_is_compared(runs: Path, value: str) -> None:
    with (runs / "evil/config.yaml").open("a") as file:
        file.write(f"\noptimizer: {{lr: {value}}}\n")
    assert main(["report", "evil", "good", "--output", "page.html"]) == 0


def test_five_thousand_classes_make_a_small_file() -> None:
    counts = [[label, (label * 7) % 5000, 3] for label in range(5000)]
    assert len(json.dumps(entry(counts, 5000))) < 200_000
    assert [list(count) for count in counts_in(entry(counts, 5000))] == counts
    few = [[0, 0, 2], [1, 0, 1]]
    assert entry(few, 3) == {"confusion": [[2, 0, 0], [1, 0, 0], [0, 0, 0]]}
    assert [list(count) for count in counts_in(entry(few, 3))] == few


def test_a_run_whose_every_file_is_odd_is_listed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in FILES[1:]:
        (runs / "evil" / name).write_bytes(b"\0\xff" * 100 + b"\n")
    shutil.copytree(runs / "evil", runs / "\x1b[2Jevil")
    assert main(["list"]) == 0
    listed = capsys.readouterr().out
    assert "\x1b" not in listed
    assert r"\x1b[2Jevil" in listed
    assert "good" in listed


def test_the_configuration_of_a_run_is_no_link(tmp_path: Path) -> None:
    from trainlib.config import read_resolved

    (tmp_path / "real.yaml").write_text("name: x\n")
    (tmp_path / "config.yaml").symlink_to(tmp_path / "real.yaml")
    with pytest.raises(ConfigError, match="is a link"):
        read_resolved(tmp_path / "config.yaml")
