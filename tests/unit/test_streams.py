"""Standard streams that are closed, full, or that nobody reads any more: of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY

ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHON": sys.executable}

# What a program prints, and how it goes on: the first lines are buffered, as they are fewer than a block.
PROGRAM = """
import sys
from trainlib.runs.terminal.streams import end_program, keep_running_without_readers
def main():
    if "go on" in sys.argv:
        keep_running_without_readers()
    for _ in range(20_000):
        print("a line of output")
    open("done", "w").close()
    return 3
end_program(main)
"""


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = ["bash", "-c", script, "bash", PROGRAM]
    return subprocess.run(words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("script", "said", "end"),
    [
        ('"$PYTHON" -c "$1" | head -1; exit ${PIPESTATUS[0]}', "", 141),
        ('"$PYTHON" -c "$1" | true; exit ${PIPESTATUS[0]}', "", 141),
        ('"$PYTHON" -c "$1" > /dev/full', "error: standard output cannot be written: No space left on device\n", 1),
        ('"$PYTHON" -c "$1" >&-', "", 3),
        ('"$PYTHON" -c "$1" <&- >&- 2>&-', "", 3),
        ('"$PYTHON" -c "$1" > /dev/full 2>&1', "", 1),
    ],
)
def test_a_program_that_shows_something(tmp_path: Path, script: str, said: str, end: int) -> None:
    done = shell(script, tmp_path)
    assert (done.returncode, done.stderr) == (end, said)


@pytest.mark.parametrize(
    "output", ["> /dev/full", ">&-", "| head -1", "> /dev/full 2>&1", "<&- >&- 2>&-", "2>&1 | true"]
)
def test_a_program_that_trains_goes_on(tmp_path: Path, output: str) -> None:
    done = shell(f'"$PYTHON" -c "$1" "go on" {output}; exit ${{PIPESTATUS[0]}}', tmp_path)
    assert done.returncode == 3
    assert (tmp_path / "done").exists()
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1  # it may tell once


def test_what_is_opened_later_never_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    program = """
from trainlib.runs.terminal.streams import secure_streams
secure_streams()
file = open("data", "wb")
print("words"); print("words", file=__import__("sys").stderr)
assert file.fileno() > 2, file.fileno()
"""
    subprocess.run(
        ["bash", "-c", 'exec "$PYTHON" -c "$1" <&- >&- 2>&-', "bash", program],
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=True,
    )
    assert (tmp_path / "data").read_bytes() == b""


SLOW = [pytest.param(words, marks=pytest.mark.slow) for words in ("--help", "check quickstart", "run --help")]


@pytest.mark.parametrize("words", ["list", *SLOW])
def test_every_command_ends_quietly_where_the_reader_has_gone(tmp_path: Path, words: str) -> None:
    done = shell(f'"$PYTHON" -m launch {words} | true; exit ${{PIPESTATUS[0]}}', tmp_path)
    assert done.returncode in (0, 141)  # 0: it had nothing more to say
    assert set(done.stderr.splitlines()) <= {"loading torch ...", "next: launch run quickstart"}


def test_an_encoding_that_lacks_a_character_is_no_error(tmp_path: Path) -> None:
    program = "from trainlib.runs.terminal.streams import end_program; end_program(lambda: print('größe \\udcff') or 0)"
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "gr\\xf6\\xdfe \\udcff\n"


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_decoder_that_does_not_return_keeps_no_program(tmp_path: Path, is_idle: bool) -> None:
    """Else the interpreter would end first, which such a thread can abort; what was printed is not lost."""
    program = f"""
import atexit, sys, types
from trainlib.runs.terminal.streams import end_program
sys.modules["trainlib.data.pictures.decoding.threads"] = types.SimpleNamespace(are_decoders_idle=lambda: {is_idle})
atexit.register(print, "the interpreter ends")
end_program(lambda: print("printed") or 5)
"""
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (5, "")
    assert done.stdout == ("printed\nthe interpreter ends\n" if is_idle else "printed\n")
